"""From a recipe of texts to a student that plain transformers loads: trained, measured, resumed, compared; bad input in one line."""

import json
import subprocess
import sys

import pytest
import yaml
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from typer.testing import CliRunner

from preceptor.cli import app

WORDS = ["[end]", *(f"w{i}" for i in range(30))]
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64}


def call(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)))


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory):
    """A folder with documents in which each word tells the next, a tokenizer, and a recipe whose teacher is trained first."""
    folder = tmp_path_factory.mktemp("kitchen")
    lines = [{"text": " ".join(f"w{(start + step * i) % 30}" for i in range(25))} for start in range(30) for step in (1, 2)]
    (folder / "texts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    words = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[end]"))
    words.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="[end]", unk_token="[end]").save_pretrained(folder / "lm")
    LlamaForCausalLM(LlamaConfig(vocab_size=len(WORDS), num_hidden_layers=4, eos_token_id=0, **SIZES)).save_pretrained(folder / "lm")
    recipe = {
        "text": {"documents": str(folder / "texts.jsonl"), "length": 16, "valid_rate": 0.1, "test_rate": 0.1, "rows": 40},
        "teacher": {
            "model": f"hf:{folder / 'lm'}",
            "train": {"steps": 60, "batch_size": 16, "learning_rate": 0.02, "monitor": "nll"},
            "folder": str(folder / "teachers"),
        },
        "student": {"keep_layers": 2},
        "method": {"name": "gkd", "on_policy_rate": 0.0, "beta": 0.0},
        "training": {"steps": 12, "batch_size": 8, "learning_rate": 0.003, "monitor": "nll"},
        "study": {"methods": [{"name": "gkd", "on_policy_rate": 0.0, "beta": 0.0, "label": "kd"}], "seeds": 2, "metrics": ["nll"]},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return folder


def test_distil_evaluate_and_load_with_plain_transformers(kitchen):
    out = kitchen / "run"
    done = call("distill", kitchen / "recipe.yaml", "--out", out, "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["task"] == "language"
    teacher, student = result["rows"]
    assert teacher["seeds"][0]["metrics"]["perplexity"] < 15  # chance is 31
    metrics = student["seeds"][0]["metrics"]
    assert student["seeds"][0]["tokens_per_second"] > 0
    assert metrics.keys() >= {"perplexity", "nll", "accuracy", "ece", "agreement", "kl_to_teacher"}
    assert json.loads(call("evaluate", out, "--json").stdout) == metrics
    assert len(result["generations"]) == 3
    assert "How they write" in (out / "report.html").read_text()
    code = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer; import torch;"
        f"m = AutoModelForCausalLM.from_pretrained({str(out / 'student')!r});"
        f"t = AutoTokenizer.from_pretrained({str(out / 'student')!r});"
        "written = m.generate(torch.tensor([[1, 2]]), max_new_tokens=3, min_new_tokens=3, do_sample=False);"
        "print(written.shape[1], len(m.model.layers), len(t))"
    )
    plain = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    assert plain.stdout.split() == ["5", "2", str(len(WORDS))]
    refused = call("export", out, "--to", "onnx")
    assert refused.exit_code == 2
    assert "expected a classifier to export, got a language model" in refused.stderr


def test_a_study_of_texts(kitchen):
    done = call("compare", kitchen / "recipe.yaml", "--out", kitchen / "study", "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert [row["name"] for row in result["rows"]] == ["teacher", "ce", "kd"]
    assert result["paired"][0]["metric"] == "nll"
    assert (kitchen / "study" / "student" / "model.safetensors").exists()


def test_texts_on_which_the_student_writes(kitchen):
    options = ["text.prompt=4", "method={name: gkd, on_policy_rate: 1.0, max_new_tokens: 6}", "training.steps=2"]
    done = call("distill", kitchen / "recipe.yaml", *options, "--out", kitchen / "own", "--json")
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data={name: digits}"], "data: expected either data or text, got both"),
        (["text=null"], "data: expected either data or text, got neither"),
        (["text.length=65", "text.rows=9"], ": expected rows of at most 64 tokens, its context, got rows of 65"),
        (["text.documents=nowhere.jsonl"], "text: expected 'python', a .jsonl or .txt file or a folder, got 'nowhere.jsonl'"),
        (["text.rows=100000"], "count: expected a number in [1, "),
        (["text.tokens=3"], "text.tokens: expected one of documents"),
        (["method={name: gkd}"], "prompt: expected the beginnings of texts"),
        (["method={name: dkd}"], "method: expected one for language, as the recipe has text, got dkd, which is for classification"),
        (["teacher=null"], "text.tokenizer: expected smollm2"),
        (["student={keep_layers: [0, 9]}"], "indices: expected rising layer numbers from 0 to 3, got [0, 9]"),
        (
            ["student={hf_config: llama, vocab_size: 40, hidden_size: 8, num_hidden_layers: 1, num_attention_heads: 2}"],
            "teacher: expected 40 tokens like the student, got 31; vocabularies that differ need the method alm",
        ),
    ],
)
def test_bad_input_is_one_line(kitchen, overrides, message):
    out = kitchen / "refused"
    result = call("distill", kitchen / "recipe.yaml", *overrides, "--out", out)
    assert result.exit_code == 2, result.output
    last = result.stderr.strip().splitlines()[-1]
    assert message in last
    assert not out.exists()


def test_a_method_of_language_models_is_refused_on_images(kitchen):
    recipe = kitchen / "images.yaml"
    recipe.write_text("data: {name: digits}\nteacher: {model: {reference: mlp}}\nstudent: {reference: mlp}\nmethod: gkd\n")
    result = call("distill", recipe, "--out", kitchen / "images")
    assert result.exit_code == 2
    assert "expected one for classification, as the recipe has data, got gkd, which is for language" in result.stderr
