import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from preceptor.metrics.hacking import hacking, power_law_break, sequence_jsd, sequence_kl, text_divergences
from preceptor.miniature.symbols import all_contexts

SYMBOLS, LENGTH = 4, 3


class Speaker(nn.Module):
    """A random language that sees everything: a row of logits for each beginning of a text."""

    def __init__(self, seed, symbols=SYMBOLS):
        super().__init__()
        self.symbols = symbols
        generator = torch.Generator().manual_seed(seed)
        self.tables = [1.5 * torch.randn(symbols ** (t + 1), symbols, dtype=torch.double, generator=generator) for t in range(LENGTH)]

    def forward(self, input_ids, use_cache=False):
        assert not self.training
        number, logits = torch.zeros(len(input_ids), dtype=torch.int64), []
        for t in range(input_ids.shape[1]):
            number = number * self.symbols + input_ids[:, t]
            logits.append(self.tables[t][number])
        return torch.stack(logits, 1)


def every_text(symbols=SYMBOLS):
    """After a prompt of symbol 0, every text of three symbols."""
    texts = F.pad(all_contexts(symbols, LENGTH), (1, 0))
    ids = torch.arange(len(texts))
    return {"x": {"input_ids": texts[:, :-1], "use_cache": False}, "y": texts[:, 1:], "mask": torch.ones(len(texts), LENGTH), "id": ids}


def likelihood(model, texts):
    """Log-probability of each text, by a plain loop."""
    logits = model.eval()(texts["x"]["input_ids"])
    return torch.tensor(
        [sum(float(row[t].log_softmax(-1)[y[t]]) for t in range(LENGTH)) for row, y in zip(logits, texts["y"], strict=True)],
        dtype=torch.double,
    )


def test_the_chain_rule_gives_the_divergence_of_whole_texts():
    p, q, texts = Speaker(0), Speaker(1), every_text()
    log_p, log_q = likelihood(p, texts), likelihood(q, texts)
    assert math.isclose(float(log_p.exp().sum()), 1.0, rel_tol=1e-12)
    enumerated = float((log_p.exp() * (log_p - log_q)).sum())
    along = text_divergences(p, q, texts, rows=7)
    assert math.isclose(float(log_p.exp() @ along), enumerated, rel_tol=1e-10)
    sampled = log_p - log_q
    variances = [float(log_p.exp() @ (values - enumerated) ** 2) for values in (along, sampled)]
    assert variances[0] < variances[1]


def test_the_mixture_is_that_of_whole_texts():
    p, q, texts = Speaker(0), Speaker(1), every_text()
    log_p, log_q = likelihood(p, texts), likelihood(q, texts)
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    for a, b, log_a in ((p, q, log_p), (q, p, log_q)):
        expected = float((log_a.exp() * (log_a - log_m)).sum())
        assert math.isclose(float(log_a.exp() @ text_divergences(a, b, texts, mixed=True)), expected, rel_tol=1e-10)


def test_a_model_is_at_no_distance_from_itself_and_modes_come_back():
    p, texts = Speaker(0).train(), every_text()
    assert sequence_kl(p, p, texts).mean == 0.0
    assert sequence_jsd(p, p, texts, texts).mean < 1e-15  # the weights of the mixture are rounded
    assert p.training


def test_only_tokens_that_count_are_summed():
    p, q, texts = Speaker(0), Speaker(1), every_text()
    first = {**texts, "mask": torch.tensor([1, 0, 0]).expand(len(texts["y"]), 3)}
    log_p, log_q = (m.tables[0][0].log_softmax(-1) for m in (p, q))
    expected = (log_p.exp() * (log_p - log_q)).sum()
    torch.testing.assert_close(text_divergences(p, q, first), expected.expand(len(texts["y"])), rtol=1e-12, atol=0)
    ignored = {**first, "y": first["y"].clone()}
    ignored["y"][:, 1:] = -100
    log_m = torch.logaddexp(log_p, log_q) - math.log(2)
    mixed = text_divergences(p, q, ignored, mixed=True)
    torch.testing.assert_close(mixed, (log_p.exp() * (log_p - log_m)).sum().expand(len(mixed)), rtol=1e-12, atol=0)


def test_distances_are_means_over_prompts_with_their_error():
    p, q, texts = Speaker(0), Speaker(1), every_text()
    values = text_divergences(p, q, texts)
    prompts = torch.tensor([0] * 32 + [5] * 16 + [9] * 16)
    found = sequence_kl(p, q, {**texts, "id": prompts})
    means = torch.stack([values[:32].mean(), values[32:48].mean(), values[48:].mean()])
    assert math.isclose(found.mean, float(means.mean()), rel_tol=1e-12)
    assert math.isclose(found.stderr, float(means.std()) / math.sqrt(3), rel_tol=1e-12)
    assert found.finished is None
    assert sequence_kl(p, q, {**texts, "finished": texts["y"][:, -1] == 0}).finished == 0.25
    one = {**texts, "id": torch.zeros(64, dtype=torch.int64)}
    assert math.isnan(sequence_kl(p, q, one).stderr)


def test_jsd_is_symmetric_bounded_and_needs_the_same_prompts():
    p, q, texts = Speaker(0), Speaker(1), every_text()
    found = sequence_jsd(p, q, texts, texts)
    other = sequence_jsd(q, p, texts, texts)
    assert math.isclose(found.mean, other.mean, rel_tol=1e-12)
    assert math.isclose(found.stderr, other.stderr, rel_tol=1e-12)
    apart = (text_divergences(a, b, texts, mixed=True) for a, b in ((p, q), (q, p)))
    assert math.isclose(found.mean, float(sum(side.mean() for side in apart)) / 2, rel_tol=1e-12)
    with pytest.raises(ValueError, match=r"others: expected texts for the prompts of texts, got ids \[1, 2, 3, 4, 5\]"):
        sequence_jsd(p, q, texts, {**texts, "id": texts["id"] + 1})


def test_vocabularies_must_match():
    texts = every_text(3)
    with pytest.raises(ValueError, match="q: expected the student's vocabulary of 3 tokens, got one of 4"):
        text_divergences(Speaker(0, 3), Speaker(0), texts)


STEPS = [round(10 * 1.5**i) for i in range(20)]


def test_onset_and_rise_of_a_convex_golden_under_a_falling_proxy():
    proxy = [5 * k**-0.5 for k in STEPS]
    golden = [2 + 0.1 * (i - 8) ** 2 for i in range(20)]
    found = hacking(STEPS, proxy, golden)
    assert (found.onset, found.lowest, found.verdict) == (STEPS[8], 2.0, "hacked")
    assert math.isclose(found.golden_rise, (golden[-1] - 2) / 2, rel_tol=1e-12)
    assert math.isclose(found.proxy_rise, proxy[-1] / proxy[8] - 1, rel_tol=1e-12)


def test_what_is_no_hacking():
    falling, rising = [5 * k**-0.5 for k in STEPS], [1 + 0.1 * i for i in range(20)]
    convex = [2 + 0.1 * (i - 8) ** 2 for i in range(20)]
    assert hacking(STEPS, falling, falling).verdict == "healthy"
    assert hacking(STEPS, convex, convex).verdict == "healthy"  # a teacher that is the oracle
    assert hacking(STEPS, rising, convex).verdict == "healthy"  # the proxy shows it
    assert hacking(STEPS, falling, convex, teacher_golden=0.0).verdict == "healthy"
    assert hacking(STEPS, falling, convex, teacher_golden=0.1).verdict == "hacked"
    assert hacking(STEPS, falling, convex, least_rise=10.0).verdict == "healthy"
    assert hacking(STEPS[:4], falling[:4], rising[:4]).verdict == "insufficient"
    assert hacking(STEPS[:5], falling[:5], rising[:5]).verdict == "hacked"
    assert hacking(STEPS, [0.0] * 20, [0.0] * 20).golden_rise == 0.0


def test_smoothing_takes_out_single_dips():
    golden = [3.0 - 0.1 * i for i in range(11)] + [2.0 + 0.2 * i for i in range(1, 10)]
    golden[17] = 0.5
    assert hacking(STEPS, golden, golden).onset == STEPS[17]
    assert hacking(STEPS, golden, golden, smooth=5).onset != STEPS[17]
    smooth = hacking(STEPS[:3], [1.0, 1.0, 1.0], [4.0, 1.0, 4.0], smooth=3)
    assert smooth.lowest == 2.5  # shorter at the ends


def test_a_power_law_raises_no_flag_and_is_found():
    found = power_law_break(STEPS, [3 * k**-0.7 for k in STEPS])
    assert (found.verdict, found.broken_at, found.offset) == ("straight", None, 0.0)
    assert math.isclose(found.scale, 3.0, rel_tol=1e-9)
    assert math.isclose(found.exponent, 0.7, rel_tol=1e-9)
    assert max(map(abs, found.residuals)) < 1e-9
    noise = torch.Generator().manual_seed(0)
    noisy = [3 * k**-0.7 * math.exp(0.02 * float(torch.randn((), generator=noise))) for k in STEPS]
    assert power_law_break(STEPS, noisy, window=0.5).verdict == "straight"


@pytest.mark.parametrize("after", [0.0, -0.4])  # a plateau; a rise
def test_a_break_is_flagged_where_it_is(after):
    at = 10
    proxy = [3 * k**-0.7 if i < at else 3 * STEPS[at] ** -0.7 * (k / STEPS[at]) ** -after for i, k in enumerate(STEPS)]
    found = power_law_break(STEPS, proxy)
    assert found.verdict == "broken"
    assert found.broken_at in STEPS[at : at + 3]
    below = [3 * k**-0.7 if i < at else 3 * k**-0.7 / 2 for i, k in enumerate(STEPS)]
    assert power_law_break(STEPS, below).verdict == "straight"  # nearer to the teacher than the law is no break


def test_single_evaluations_above_the_law_are_no_break():
    proxy = [3 * k**-0.7 for k in STEPS]
    proxy[12] *= 2
    proxy[13] *= 2
    assert power_law_break(STEPS, proxy).verdict == "straight"
    assert power_law_break(STEPS, proxy, in_a_row=2).broken_at == STEPS[12]
    assert power_law_break(STEPS, proxy, in_a_row=2, num_spreads=40.0).verdict == "straight"
    assert power_law_break(STEPS, proxy, in_a_row=2, least_spread=0.5).verdict == "straight"


def test_warm_up_is_left_out():
    proxy = [3 * k**-0.7 for k in STEPS]
    late = [9.0, 9.0, 9.0, *proxy[3:]]
    assert math.isclose(power_law_break(STEPS, late, warmup=3).exponent, 0.7, rel_tol=1e-9)
    assert power_law_break(STEPS, late).exponent > 1


def test_an_offset_is_no_break_where_it_is_fitted():
    proxy = [3 * k**-0.7 + 0.2 for k in STEPS]
    assert power_law_break(STEPS, proxy, window=0.5).verdict == "broken"
    found = power_law_break(STEPS, proxy, window=0.5, offset=True)
    assert found.verdict == "straight"
    for value, expected in ((found.scale, 3.0), (found.exponent, 0.7), (found.offset, 0.2)):
        assert math.isclose(value, expected, rel_tol=1e-4)
    plain = power_law_break(STEPS, [3 * k**-0.7 for k in STEPS], offset=True)
    assert plain.offset < 1e-3
    assert plain.verdict == "straight"
    at = 14
    broken = [value * (1.5 if i >= at else 1) for i, value in enumerate(proxy)]
    assert power_law_break(STEPS, broken, window=0.5, offset=True).broken_at == STEPS[at]


def test_too_few_evaluations_are_not_judged():
    proxy = [3 * k**-0.7 for k in STEPS]
    found = power_law_break(STEPS[:7], proxy[:7])
    assert (found.verdict, found.broken_at, found.residuals) == ("insufficient", None, ())
    assert power_law_break(STEPS[:8], proxy[:8]).verdict == "straight"
    assert power_law_break(STEPS[:8], proxy[:8], warmup=1).verdict == "insufficient"
    assert power_law_break(STEPS, proxy, window=1.0).verdict == "insufficient"


def test_bad_curves_are_refused():
    ones = [1.0] * 20
    for call, message in (
        (lambda: hacking([], [], []), r"steps: expected at least one, rising, got \[\]"),
        (lambda: hacking([1, 1], [1.0, 1.0], [1.0, 1.0]), r"steps: expected at least one, rising, got \[1, 1\]"),
        (lambda: hacking(STEPS, ones, ones[1:]), "golden: expected 20 values like steps, got 19"),
        (lambda: hacking(STEPS, [math.nan, *ones[1:]], ones), "proxy: expected finite numbers >= 0, got nan"),
        (lambda: hacking(STEPS, ones, ones, smooth=2), "smooth: expected an odd number of at least 1, got 2"),
        (lambda: hacking(STEPS, ones, ones, least_rise=-1.0), "least_rise: expected a number >= 0, got -1.0"),
        (lambda: power_law_break(STEPS, [0.0, *ones[1:]]), "proxy: expected a finite number > 0, got 0.0"),
        (lambda: power_law_break([0, *STEPS[1:]], ones), "steps: expected a finite number > 0, got 0"),
        (lambda: power_law_break(STEPS, ones, window=1.5), r"window, warmup: expected .*, got 1.5 and 0"),
        (lambda: power_law_break(STEPS, ones, warmup=-1), r"window, warmup: expected .*, got 0.3 and -1"),
        (lambda: power_law_break(STEPS, ones, in_a_row=0), "in_a_row: expected at least 1, got 0"),
        (lambda: text_divergences(Speaker(0), Speaker(0), every_text(), rows=0), "rows: expected at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
