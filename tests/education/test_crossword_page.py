"""A crossword as files: what they hold, and the page played by keyboard and by touch in a real browser."""

import json
import re
from pathlib import Path

import pytest
from playwright import sync_api

from preceptor.education.crossword.answers import Clue
from preceptor.education.crossword.export import as_json, ipuz, svg, text, write_files
from preceptor.education.crossword.make import clues_for, judged, make_crossword, read_clues
from preceptor.education.crossword.page import WORDS, page
from preceptor.teachers.chat import Chat, Said

CHROMIUM = Path("/usr/bin/chromium")
CLUES = [
    Clue(answer="città", text="Roma o Milano"),
    Clue(answer="tetto", text="Copre la <casa> & basta"),
    Clue(answer="albero", text="Ha radici, tronco e rami"),
    Clue(answer="l'orto", text="Ci crescono gli ortaggi".replace("ortaggi", "zucchini")),
    Clue(answer="mare", text='Azzurro e "salato" </script>'),
    Clue(answer="monte", text="Si scala con fatica"),
    Clue(answer="lago", text="Acqua dolce e ferma"),
]


@pytest.fixture(scope="module")
def crossword():
    return make_crossword(CLUES, title="Natura & città", lang="it", size=10, seconds=None, restarts=8)


def test_all_words_are_in(crossword):
    assert crossword.puzzle.stats.words == len(CLUES)
    assert crossword.unused == ()
    assert {clue.text for clue in CLUES} == {crossword.clue_of(entry).text for entry in crossword.puzzle.entries}


def test_ipuz(crossword):
    made = json.loads(json.dumps(ipuz(crossword)))
    height, width = made["dimensions"]["height"], made["dimensions"]["width"]
    assert len(made["puzzle"]) == len(made["solution"]) == height
    assert {len(row) for row in (*made["puzzle"], *made["solution"])} == {width}
    for name, (down, across) in {"Across": (0, 1), "Down": (1, 0)}.items():
        for number, clue in made["clues"][name]:
            ((r, c),) = [(r, c) for r in range(height) for c in range(width) if made["puzzle"][r][c] == number]
            letters = ""
            while r < height and c < width and made["solution"][r][c] != "#":
                letters += made["solution"][r][c]
                r, c = r + down, c + across
            assert crossword.clues[letters].text == clue


def test_text_svg_and_json(crossword, tmp_path):
    plain = text(crossword)
    assert "Orizzontali" in plain
    assert all(clue.text in plain for clue in CLUES)
    letters = crossword.puzzle.stats.letters
    assert svg(crossword.puzzle).count("<rect") == letters
    assert svg(crossword.puzzle, solved=True).count('text-anchor="middle"') == letters
    assert {entry["written"] for entry in as_json(crossword)["entries"]} == {clue.answer for clue in CLUES}
    paths = write_files(crossword, tmp_path / "new" / "folder")
    assert [path.name for path in paths] == [
        "crossword.html",
        "crossword.ipuz",
        "crossword.txt",
        "crossword.svg",
        "solution.svg",
        "crossword.json",
    ]
    assert all(path.stat().st_size > 100 for path in paths)


def test_the_page_needs_nothing_from_elsewhere_and_escapes(crossword):
    html = page(crossword)
    assert not re.search(r"(src|href)=|url\(|@import|https?://", html)
    assert "<casa>" not in html
    assert html.count("</script>") == 1
    assert "Copre la &lt;casa&gt; &amp; basta" in html
    assert len(re.findall(r'<input id="c\d+-\d+" aria-label="riga \d+, colonna \d+; ', html)) == crossword.puzzle.stats.letters
    assert WORDS["it"].keys() == WORDS["en"].keys()


@pytest.mark.parametrize(
    ("clues", "size", "message"),
    [
        ([], 9, "clues: expected at least 2 answers with a good clue, got 0 of 0"),
        (CLUES[:1], 9, "clues: expected at least 2 answers with a good clue, got 1 of 1"),
        (
            [CLUES[0], Clue(answer="CITTA'", text="Torino per esempio")],
            9,
            "clues: expected at least 2 answers with a good clue, got 1 of 2",
        ),
        (
            [CLUES[0], Clue(answer="CO2", text="Un gas")],
            9,
            "clues: expected at least 2 answers with a good clue, got 1 of 2: 'CO2', answer: expected letters A to Z, "
            "accents, apostrophes, spaces and hyphens, got '2' in 'CO2'",
        ),
        (
            [Clue(answer="ABBA", text="Gruppo svedese"), Clue(answer="CEDE", text="Si arrende presto")],
            9,
            "words: expected two that cross in a grid of 9 cells, got ABBA, CEDE",
        ),
        (CLUES, 2, "size: expected at least 3 cells, got 2"),
    ],
)
def test_bad_input(clues, size, message):
    with pytest.raises(ValueError, match="expected") as error:
        make_crossword(clues, title="x", lang="it", size=size, seconds=0)
    assert str(error.value) == message


def test_lists_of_words(tmp_path):
    path = tmp_path / "words.csv"
    path.write_text("answer,clue\ncittà,Roma o Milano\nsole,\n", encoding="utf-8")
    given = read_clues(path)
    assert given == [Clue(answer="città", text="Roma o Milano"), Clue(answer="sole", text="")]
    with pytest.raises(ValueError, match=r"^clue: expected one for 'sole' \(of 1 answers without\), or a model to write it, got none$"):
        clues_for(given, None, lang="it")
    path.write_text("risposta,clue\ncittà,Roma\n", encoding="utf-8")
    with pytest.raises(ValueError, match="expected a column 'answer', got risposta, clue"):
        read_clues(path)
    path.write_text("answer,clue\n,Roma\n", encoding="utf-8")
    with pytest.raises(ValueError, match="expected an answer in row 1, got none"):
        read_clues(path)


def test_a_judge_refuses_and_scores():
    class Judge:
        model, batch, parallel = "judge", 1, 1

        def answer(self, questions):
            said = []
            for question in questions:
                words = question.messages[0]["content"]
                if "valid" in words.split("JSON schema")[0]:
                    said.append(Said(text=json.dumps({"valid": "lago" not in words})))
                else:
                    said.append(Said(text='["porto", "monte"]' if "scala" in words else "[]"))
            return said

    found = judged([CLUES[5], CLUES[6], CLUES[4]], Chat(Judge()), lang="it", strict=True)
    assert [why for _, why in found] == ["", "the model calls it wrong", "not among 5 guesses"]
    assert found[0][0].score == pytest.approx((1 + 1 / 2) / 2)


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM.exists():
        pytest.skip("there is no /usr/bin/chromium")
    with sync_api.sync_playwright() as playwright:
        made = playwright.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-background-networking", "--disable-gpu"]
        )
        yield made
        made.close()


@pytest.fixture
def played(browser, crossword, tmp_path):
    path = tmp_path / "crossword.html"
    path.write_text(page(crossword), encoding="utf-8")
    context = browser.new_context(has_touch=True, viewport={"width": 900, "height": 900})
    tab = context.new_page()
    problems = []
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("console", lambda message: problems.append(message.text) if message.type == "error" else None)
    tab.on("request", lambda request: problems.append(request.url) if not request.url.startswith("file:") else None)
    tab.goto(f"file://{path}")
    yield tab
    assert problems == []
    context.close()


def clue_button(tab, entry, crossword):
    return tab.locator(f'[data-entry="{crossword.puzzle.entries.index(entry)}"]')


def values(tab, entry):
    return "".join(tab.locator(f"#c{r}-{c}").input_value() for r, c in entry.cells())


def test_type_a_word_and_see_it_checked(played, crossword):
    entry = next(entry for entry in crossword.puzzle.entries if entry.answer == "CITTA")
    clue_button(played, entry, crossword).click()
    assert "Roma o Milano" in played.locator("#now").inner_text()
    played.keyboard.type("città")  # an accent is a letter
    assert values(played, entry) == "CITTA"
    played.locator("#check").click()
    empty = crossword.puzzle.stats.letters - 5
    assert played.locator("#said").inner_text() == f"Finora tutto giusto, {empty} vuote"
    assert played.locator(".cell.wrong").count() == 0
    clue_button(played, entry, crossword).click()
    played.keyboard.type("x")
    played.locator("#check").click()
    assert played.locator("#said").inner_text() == f"1 sbagliate, {empty} vuote"
    assert played.locator('.cell.wrong input[aria-invalid="true"]').count() == 1
    assert played.locator("button.full").count() == 1


def test_solve_it_and_the_clock_stops(played, crossword):
    for entry in crossword.puzzle.entries:
        clue_button(played, entry, crossword).click()
        played.keyboard.press("Home")
        played.keyboard.type(entry.answer.lower())
    assert played.locator("#said").inner_text().startswith("Risolto in 0:")
    before = played.locator("#time").inner_text()
    played.wait_for_timeout(1200)
    assert played.locator("#time").inner_text() == before


def test_keys_move_turn_and_delete(played, crossword):
    crossing = next(
        (r, c)
        for entry in crossword.puzzle.entries
        for r, c in entry.cells()
        if sum((r, c) in other.cells() for other in crossword.puzzle.entries) == 2
    )
    cell = played.locator(f"#c{crossing[0]}-{crossing[1]}")
    cell.tap()
    first = played.locator("#now").inner_text()
    played.keyboard.press("Space")
    assert played.locator("#now").inner_text() != first
    cell.tap()  # a second tap turns back
    assert played.locator("#now").inner_text() == first
    played.keyboard.press("Home")
    played.keyboard.type("ab")
    played.keyboard.press("Backspace")
    played.keyboard.press("Backspace")
    played.keyboard.press("Backspace")
    assert played.locator("#grid input").evaluate_all("cells => cells.map(cell => cell.value).join('')") == ""
    played.keyboard.press("Tab")
    assert played.locator("#now").inner_text() != first
    played.keyboard.press("ArrowRight")
    assert played.locator(".cell.here").count() == 1
    assert played.locator('button[aria-current="true"]').count() == 1


def test_reveal_and_clear(played, crossword):
    played.on("dialog", lambda dialog: dialog.accept())
    played.locator("#letter").click()
    played.locator("#word").click()
    entry = crossword.puzzle.entries[0]
    assert values(played, entry) == entry.answer
    played.locator("#all").click()
    assert played.locator("#said").inner_text().startswith("Risolto, con aiuti, in 0:")
    played.locator("#clear").click()
    assert values(played, entry) == " ".join([""] * len(entry.answer)).replace(" ", "")
    assert played.locator("#time").inner_text() == "0:00"


def test_the_printed_sheet_is_one_page_without_letters(played, crossword):
    played.locator("#word").click()
    played.emulate_media(media="print")
    assert not played.locator("#check").is_visible()
    assert played.locator(".sheet").is_visible()
    assert played.locator("#c0-0, #grid input").first.evaluate("cell => getComputedStyle(cell).color") == "rgba(0, 0, 0, 0)"
    pdf = played.pdf(format="A4")
    assert pdf.startswith(b"%PDF")
    assert len(re.findall(rb"/Type\s*/Page\b", pdf)) == 1
