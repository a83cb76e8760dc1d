"""The packed model equals its definition, and no text changes its neighbours' answers."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from train.errors import ConfigError
from train.model import BetConfig, BetForSequenceClassification
from train.model.attention import rank_table, rotate, segment_orders
from train.model.dropout import ByteDropout, shares_dropped
from train.model.position import position_features
from train.model.segments import Tokens, segment
from train.model.streams import covering_evidence

LIMIT, SEGMENT = 96, 16
LENGTHS = st.lists(st.integers(1, LIMIT), min_size=1, max_size=6)


def random_model(classes: int = 2, orders: int = 8) -> BetForSequenceClassification:
    """A small model whose every weight and table is random, so that nothing is zero by chance."""
    torch.manual_seed(0)
    config = BetConfig(
        vocab_size=300, embedding_size=16, hidden_size=16, num_attention_heads=2, intermediate_size=24,
        orders=orders, segment_length=SEGMENT, evidence_width=16, max_tokens=LIMIT, head_tokens=24,
        hash_slots=4096, num_labels=classes,
    )  # fmt: skip
    model = BetForSequenceClassification(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, 0, 0.4)
    nn.init.normal_(model.evidence.unigram, 0, 0.1)
    return model


MODELS = {classes: random_model(classes) for classes in (2, 4)}


def draw_texts(lengths: list[int], seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(1, 300, (n,), generator=generator) for n in lengths]


def column(lengths: list[int]) -> Tensor:
    return torch.tensor(lengths, dtype=torch.int32)[:, None]


@torch.no_grad()
def answers(model: BetForSequenceClassification, texts: list[Tensor]) -> list[Tensor]:
    return [field.float() for field in model.predict(torch.cat(texts), column([len(t) for t in texts]))]


def full_passes(model: BetForSequenceClassification, text: Tensor) -> Tensor:
    """Read-outs of one text by K complete passes over really reordered positions: the definition, [K, width]."""
    encoder, readout = model.trunk.encoder, model.trunk.words.readout
    position = torch.arange(len(text))
    own_segment = position // SEGMENT
    same = own_segment[:, None] == own_segment[None]
    placed = position_features(position, torch.tensor(len(text)))
    x = (encoder.project_in(encoder.embedding(text)) + encoder.position(placed))[None]
    x = torch.cat([encoder.convolution(s, torch.ones(1, len(s), dtype=torch.bool)) for s in x[0].split(SEGMENT)])[None]
    for block in encoder.blocks:
        qkv = block.query_key_value(block.attention_norm(x)).reshape(1, len(text), 3, block.heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        query, key = rotate(query, position, block.rotary_base), rotate(key, position, block.rotary_base)
        scores = (query @ key.transpose(-1, -2) / math.sqrt(query.shape[-1])).masked_fill(~same, -1e9)
        x = x + block.output((scores.softmax(-1) @ value).transpose(1, 2).reshape(1, len(text), -1))
        x = x + block.down(nn.functional.gelu(block.up(block.feed_forward_norm(x))))
    x = encoder.norm(x)
    value = readout.value(x).reshape(1, len(text), readout.heads, -1).transpose(1, 2)
    out = []
    for order in range(readout.rank.shape[1]):
        rank = readout.rank[-(-len(text) // SEGMENT), order][own_segment]
        key = readout.key(x).reshape(1, len(text), readout.heads, -1).transpose(1, 2)
        key = rotate(key, SEGMENT * rank + position % SEGMENT, readout.rotary_base)
        scores = readout.query[None, :, None] @ key.transpose(-1, -2) / math.sqrt(key.shape[-1])
        out.append((scores.softmax(-1) @ value).reshape(-1))
    return torch.stack(out)


@given(LENGTHS)
@settings(max_examples=25)
def test_the_packed_read_out_equals_k_full_passes(lengths: list[int]) -> None:
    model = MODELS[2]
    texts = draw_texts(lengths)
    with torch.no_grad():
        tokens = model.read_tokens(torch.cat(texts), column(lengths))
        segments = segment(tokens, column(lengths), SEGMENT)
        position = position_features(segments.offset, tokens.lengths[segments.row][:, None])
        packed = model.trunk.words.readout(model.trunk.encoder(segments.ids, position, segments), segments)
        for row, text in enumerate(texts):
            torch.testing.assert_close(packed[row], full_passes(model, text), atol=2e-5, rtol=1e-4)


@given(LENGTHS, st.sampled_from([2, 4]))
@settings(max_examples=25)
def test_an_answer_does_not_depend_on_the_neighbours(lengths: list[int], classes: int) -> None:
    texts = draw_texts(lengths)
    joined = answers(MODELS[classes], texts)
    for row, text in enumerate(texts):
        for together, alone in zip(joined, answers(MODELS[classes], [text]), strict=True):
            torch.testing.assert_close(together[row : row + 1], alone, atol=2e-5, rtol=1e-4)


@given(LENGTHS)
@settings(max_examples=25)
def test_a_rectangle_filled_with_minus_one_gives_the_same_answers(lengths: list[int]) -> None:
    texts = draw_texts(lengths)
    box = nn.utils.rnn.pad_sequence(texts, batch_first=True, padding_value=-1)
    with torch.no_grad():
        filled = MODELS[2].predict(box.reshape(-1), column([box.shape[1]] * len(texts)))
    for left, right in zip(filled, answers(MODELS[2], texts), strict=True):
        torch.testing.assert_close(left.float(), right, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("harmful", [0, LIMIT + 1, 5 * LIMIT])
def test_an_empty_or_over_long_row_is_finite_and_leaves_its_neighbours_alone(harmful: int) -> None:
    texts = draw_texts([20, harmful, 33])
    joined = answers(MODELS[2], texts)
    for row in (0, 2):
        for together, alone in zip(joined, answers(MODELS[2], [texts[row]]), strict=True):
            torch.testing.assert_close(together[row : row + 1], alone, atol=2e-5, rtol=1e-4)
    assert all(torch.isfinite(field).all() for field in joined)
    if harmful:
        for cut, whole in zip(answers(MODELS[2], [texts[1][:LIMIT]]), joined, strict=True):
            torch.testing.assert_close(cut, whole[1:2], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("foreign", [300, 10**9, -7])
def test_an_id_outside_the_vocabulary_counts_as_nothing(foreign: int) -> None:
    texts = draw_texts([20, 9])
    texts[1][4:] = foreign
    for together, alone in zip(answers(MODELS[2], texts), answers(MODELS[2], [texts[0]]), strict=True):
        torch.testing.assert_close(together[:1], alone, atol=2e-5, rtol=1e-4)
    for cut, whole in zip(answers(MODELS[2], [texts[1][:4]]), answers(MODELS[2], [texts[1]]), strict=True):
        torch.testing.assert_close(cut, whole, atol=2e-5, rtol=1e-4)


@given(LENGTHS, st.sampled_from([2, 4]), st.integers(0, 2**31))
@settings(max_examples=25)
def test_a_text_is_a_set_of_segments_that_know_their_place(lengths: list[int], classes: int, seed: int) -> None:
    model = MODELS[classes]
    with torch.no_grad():
        tokens = model.read_tokens(torch.cat(draw_texts(lengths)), column(lengths))
        by_token = model.evidence(tokens).by_token
        segments = segment(tokens, column(lengths), SEGMENT)
        other = torch.randperm(len(segments.row), generator=torch.Generator().manual_seed(seed))
        shuffled = segments._replace(
            **{name: getattr(segments, name)[other] for name in segments._fields if name not in ("per_row", "member")},
            member=segments.member[:, other],
        )
        for left, right in zip(
            model.trunk(segments, tokens, by_token), model.trunk(shuffled, tokens, by_token), strict=True
        ):
            torch.testing.assert_close(left, right, atol=2e-5, rtol=1e-4)


@given(LENGTHS)
@settings(max_examples=25)
def test_evidence_covers_the_tokens_of_its_own_text(lengths: list[int]) -> None:
    tokens = MODELS[2].read_tokens(torch.cat(draw_texts(lengths)), column(lengths))
    with torch.no_grad():
        covering = covering_evidence(tokens_left(tokens)).unflatten(1, (6, -1))
    start = 0
    for length in lengths:
        reach = covering[start : start + length, :, 0]
        # Columns: 1-gram, 2-grams from here and one before, 3-grams from here, one and two before.
        for column_, (size, back) in enumerate([(1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (3, 2)]):
            expected = [float(back <= t <= length - size + back) for t in range(length)]
            assert (reach[:, column_] > 0).float().tolist() == expected
        start += length


def tokens_left(tokens: Tokens) -> Tensor:
    """1 at each token where an n-gram that starts there lies within its text, [T, 3, 1]."""
    left = tokens.lengths[tokens.row] - tokens.place
    return torch.stack([(left >= n).float() for n in (1, 2, 3)], 1)[..., None]


def test_one_order_is_the_text_as_it_stands() -> None:
    keys = segment_orders(1, 5, seed=3)
    assert rank_table(keys)[5, 0].tolist() == [0, 1, 2, 3, 4]
    assert answers(random_model(orders=1), draw_texts([40]))[5].item() == 0  # no dispersion


def test_every_order_is_a_permutation_of_the_segments_that_are_there() -> None:
    table = rank_table(segment_orders(8, 6, seed=0))
    for n in range(1, 7):
        for order in range(8):
            assert sorted(table[n, order, :n].tolist()) == list(range(n))


@given(LENGTHS, st.sampled_from([2, 4]))
@settings(max_examples=20)
def test_uncertainties_add_up_and_stay_in_range(lengths: list[int], classes: int) -> None:
    model = MODELS[classes]
    with torch.no_grad():
        p = model.predict(torch.cat(draw_texts(lengths)), column(lengths))
    torch.testing.assert_close(p.probabilities.sum(-1), torch.ones(len(lengths)))
    torch.testing.assert_close(p.total, p.aleatoric + p.epistemic)
    assert (p.total <= math.log(classes) + 1e-5).all()
    assert (p.epistemic >= 0).all()
    assert (p.aleatoric >= -1e-5).all()
    assert p.evidence_budget.dtype == torch.int32
    assert ((p.evidence_budget >= 1) & (p.evidence_budget <= 8)).all()


def test_training_reads_random_orders_and_evaluation_gives_log_probabilities() -> None:
    model = random_model()
    texts = draw_texts([60, 40])
    batch = {"input_ids": torch.cat(texts), "lengths": column([60, 40]), "labels": torch.tensor([0, 1])}
    model.train()
    torch.manual_seed(0)
    first = model(**batch)
    first.loss.backward()
    assert model.trunk.words.readout.query.grad is not None
    assert not torch.equal(first.logits, model(**batch).logits)
    model.eval()
    with torch.no_grad():
        evaluated = model(**batch)
        p = model.predict(batch["input_ids"], batch["lengths"]).probabilities
    torch.testing.assert_close(evaluated.logits.exp(), p)
    torch.testing.assert_close(evaluated.loss, -p[[0, 1], [0, 1]].log().mean())


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    model = random_model()
    batch = {"input_ids": draw_texts([50])[0], "lengths": column([50]), "labels": torch.tensor([1])}
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable()
        model.train()
        model.zero_grad()
        torch.manual_seed(5)
        model(**batch).loss.backward()
        gradients.append(model.trunk.encoder.project_in.weight.grad.clone())
    torch.testing.assert_close(gradients[0], gradients[1])


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_mixed_precision_trains(precision: torch.dtype) -> None:
    model = random_model().train()
    batch = {"input_ids": draw_texts([50])[0], "lengths": column([50]), "labels": torch.tensor([1])}
    losses = []
    for enabled in (False, True):
        torch.manual_seed(5)
        model.zero_grad()
        with torch.autocast("cpu", precision, enabled=enabled):
            loss = model(**batch).loss
        loss.backward()
        losses.append(loss.item())
        assert torch.isfinite(model.trunk.encoder.project_in.weight.grad).all()
    assert losses[1] == pytest.approx(losses[0], abs=0.05)


def test_it_survives_save_and_load_with_all_its_tables(tmp_path: object) -> None:
    model = random_model()
    model.save_pretrained(tmp_path)
    loaded = BetForSequenceClassification.from_pretrained(tmp_path)
    assert model.state_dict().keys() == loaded.state_dict().keys()
    for name, value in model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[name]), name
        assert value.dtype == loaded.state_dict()[name].dtype, name


def test_an_impossible_configuration_is_refused_with_every_fault() -> None:
    with pytest.raises(ConfigError, match=r"orders = 0.*head_tokens = 900.*hidden_dropout = 1"):
        BetConfig(orders=0, head_tokens=900, hidden_dropout=1)


def test_dropout_from_bytes_keeps_the_mean_and_is_off_in_evaluation() -> None:
    x = torch.ones(101, 1003)
    dropout = ByteDropout(0.2)
    torch.manual_seed(0)
    dropped = dropout(x)
    assert (dropped == 0).float().mean().item() == pytest.approx(51 / 256, abs=0.005)
    assert dropped.mean().item() == pytest.approx(1, abs=0.01)
    assert torch.equal(dropout.eval()(x), x)
    assert torch.equal(ByteDropout(0.0)(x), x)


@pytest.mark.parametrize("mean", [0.0, 0.05, 0.2, 0.5, 1.0])
def test_a_text_loses_little_or_nearly_all_of_its_words(mean: float) -> None:
    torch.manual_seed(0)
    shares = shares_dropped(20_000, mean, torch.device("cpu"))
    assert shares.mean().item() == pytest.approx(mean, abs=0.01)
    assert ((shares >= 0) & (shares <= 1)).all()
    if 0 < mean < 0.3:
        assert shares.median() < mean < shares.quantile(0.99)
