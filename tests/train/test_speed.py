"""The loss in chunks, packed training, the accounting of speed, autocast, checkpointed activations, compilation."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertForMaskedLM

from cellray.errors import InputError
from cellray.model.packed import unpad
from cellray.model.presets import bert_config
from cellray.train import throughput
from cellray.train.annotation import work_of
from cellray.train.head_loss import linear_cross_entropy
from cellray.train.objectives import NOT_MASKED, GeneMasker, MaskedBatch, MaskedGeneLoss, step_generator
from cellray.train.parameters import add_lora, freeze_layers
from cellray.train.precision import autocast, autocast_dtype, checkpoint_activations, compile_layers
from cellray.train.throughput import StepWork, ThroughputWindow, peak_flops, peak_memory_bytes, peak_of, row_lengths
from cellray.vocabulary import GeneVocabulary

CPU = torch.device("cpu")


def plain(hidden_md: Tensor, weight_vd: Tensor, bias_v: Tensor, labels_m: Tensor) -> Tensor:
    logits_mv = nn.functional.linear(hidden_md, weight_vd, bias_v)
    return nn.functional.cross_entropy(logits_mv.float(), labels_m, reduction="sum")


def layer(rows: int, dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], Tensor]:
    torch.manual_seed(0)
    tensors = [torch.randn(shape, dtype=dtype, requires_grad=True) for shape in ((rows, 8), (31, 8), (31,))]
    return tensors, torch.randint(31, (rows,))


@pytest.mark.parametrize("chunk_rows", [1, 3, 10, 50, None])
@pytest.mark.parametrize("rows", [0, 1, 10])
def test_the_loss_in_chunks_is_the_plain_one(rows: int, chunk_rows: int | None) -> None:
    tensors, labels = layer(rows)
    losses = linear_cross_entropy(*tensors, labels, chunk_rows), plain(*tensors, labels)
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-6)
    found, expected = (torch.autograd.grad(loss * 0.25, tensors) for loss in losses)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        assert linear_cross_entropy(*tensors, labels, chunk_rows).item() == losses[0].item()


def test_the_loss_in_chunks_under_autocast() -> None:
    tensors, labels = layer(40)
    with torch.autocast("cpu", torch.bfloat16):
        losses = linear_cross_entropy(*tensors, labels, 7), plain(*tensors, labels)
    assert losses[0].dtype == torch.float32
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-3)
    found, expected = (torch.autograd.grad(loss, tensors) for loss in losses)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0.02, atol=0.05)


def test_large_logits_do_not_overflow() -> None:
    tensors, labels = layer(5)
    large = [tensors[0] * 1e4, *tensors[1:]]
    assert linear_cross_entropy(*large, labels, 2).item() == pytest.approx(plain(*large, labels).item(), rel=1e-6)


def trained(vocabulary: GeneVocabulary, dropout: float = 0.0) -> BertForMaskedLM:
    torch.manual_seed(0)
    config = bert_config("tiny", vocabulary, 16)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = dropout
    return BertForMaskedLM(config).train()


def tokens(padded: bool = True) -> Tensor:
    torch.manual_seed(1)
    ids_nl = torch.randint(2, 32, (6, 16))
    if padded:
        ids_nl[torch.arange(16)[None] >= torch.tensor([16, 3, 9, 1, 12, 7])[:, None]] = 0
    return ids_nl


def masked(vocabulary: GeneVocabulary, ids_nl: Tensor) -> MaskedBatch:
    return GeneMasker(vocabulary, 0.3, CPU)(ids_nl, step_generator(0, 0, 0, CPU), int((ids_nl != 0).sum()))


def gradients(model: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], rtol: float = 1e-4) -> None:
    assert found.keys() == expected.keys()
    for name, grad in expected.items():
        assert float((found[name] - grad).norm()) <= rtol * float(grad.norm()) + 1e-6, name


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("padded", [False, True])
def test_a_step_is_that_of_transformers(vocabulary: GeneVocabulary, dropout: float, *, padded: bool) -> None:
    batch = masked(vocabulary, tokens(padded))
    assert batch.padded == padded
    theirs, ours = trained(vocabulary, dropout), trained(vocabulary, dropout)
    torch.manual_seed(2)
    expected = theirs(batch.input_ids_nl, attention_mask=batch.input_ids_nl != 0, labels=batch.labels_nl).loss
    torch.manual_seed(2)
    total, count = MaskedGeneLoss(ours, vocabulary)(batch)
    assert (total / count).item() == pytest.approx(expected.item(), abs=1e-5)
    assert_same(gradients(ours, total / count), gradients(theirs, expected))


def test_a_packed_step_is_the_padded_one(vocabulary: GeneVocabulary) -> None:
    ids_nl = tokens()
    row = unpad(ids_nl, 0)
    batch = GeneMasker(vocabulary, 0.3, CPU)(row, step_generator(0, 0, 0, CPU))
    assert batch.packed is row
    assert not batch.padded
    assert int((batch.labels_nl != NOT_MASKED).sum()) > 3
    inputs_nl, labels_nl = torch.zeros_like(ids_nl), torch.full_like(ids_nl, NOT_MASKED)
    inputs_nl[ids_nl != 0], labels_nl[ids_nl != 0] = batch.input_ids_nl[0], batch.labels_nl[0]
    model = trained(vocabulary)
    loss = MaskedGeneLoss(model, vocabulary)
    packed, padded = loss(batch), loss(MaskedBatch(inputs_nl, labels_nl))
    assert packed[1] == padded[1]
    assert packed[0].item() == pytest.approx(padded[0].item(), rel=1e-6)
    assert_same(gradients(model, packed[0]), gradients(model, padded[0]))


def test_a_batch_without_a_masked_gene_has_no_loss(vocabulary: GeneVocabulary) -> None:
    ids_nl = tokens()
    model = trained(vocabulary)
    total, count = MaskedGeneLoss(model, vocabulary)(MaskedBatch(ids_nl, torch.full_like(ids_nl, NOT_MASKED)))
    assert (total.item(), count.item()) == (0, 0)
    assert all(float(grad.abs().max()) == 0 for grad in gradients(model, total).values())


def test_flops_are_those_torch_counts(vocabulary: GeneVocabulary) -> None:
    """With every matrix product visible to torch's counter: it knows none inside fused attention, and no `addmm_`."""
    ids_nl = tokens(padded=False)
    batch = masked(vocabulary, ids_nl)
    model = trained(vocabulary)
    loss = MaskedGeneLoss(model, vocabulary)
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        loss(batch)[0].backward()
    count = int((batch.labels_nl != NOT_MASKED).sum())
    decoder_in_place = 2 * count * model.config.vocab_size * model.config.hidden_size
    counted = counter.get_total_flops() + decoder_in_place
    assert StepWork(model.config).flops(ids_nl.numel(), 6 * 16**2, count) == counted


@pytest.mark.parametrize("frozen", [0, 1, 2, 3])
def test_flops_of_frozen_layers_are_those_torch_counts(vocabulary: GeneVocabulary, frozen: int) -> None:
    ids_nl = tokens(padded=False)
    bert = trained(vocabulary).bert.train()
    freeze_layers(SimpleNamespace(bert=bert), frozen)  # type: ignore[arg-type]
    bert.set_attn_implementation("eager")
    weight = torch.ones((), requires_grad=True)
    with FlopCounterMode(display=False) as counter:
        (weight * bert(ids_nl).last_hidden_state.sum()).backward()
    work = work_of(bert)
    assert (work.frozen, work.config.num_hidden_layers) == (frozen, 3)
    assert work.flops(ids_nl.numel(), 6 * 16**2, 0) == counter.get_total_flops()


def test_flops_with_additions_are_those_torch_counts_less_the_additions(vocabulary: GeneVocabulary) -> None:
    ids_nl = tokens(padded=False)
    bert = trained(vocabulary).bert.train()
    freeze_layers(SimpleNamespace(bert=bert), 1)  # type: ignore[arg-type]
    add_lora(SimpleNamespace(bert=bert), rank=1, alpha=1.0)  # type: ignore[arg-type]
    bert.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        bert(ids_nl).last_hidden_state.sum().backward()
    work = work_of(bert)
    assert (work.frozen, work.weights) == (1, False)
    # two additions in each of two layers, down to rank 1 and up again; what goes into the lower ones needs no gradient
    additions = 2 * (2 * 4 + 8 + 6) * work.config.hidden_size * ids_nl.numel()
    keys_of_the_first = 2 * work.config.hidden_size * 6 * 16**2  # nothing is learnt of them: no gradient
    assert work.flops(ids_nl.numel(), 6 * 16**2, 0) == counter.get_total_flops() - additions + keys_of_the_first


def test_flops_of_v1_by_hand(vocabulary: GeneVocabulary) -> None:
    config = bert_config("v1-10m", vocabulary, 2048)
    config.vocab_size = 25_426
    # a token: 6 layers of 4 x 256 x 256 + 2 x 256 x 512 weights; a masked one: 256 x 256 + 25,426 x 256
    by_hand = 6 * (2048 * 3_145_728 + 307 * 6_574_592) + 12 * 6 * 256 * 2048**2
    assert StepWork(config).flops(2048, 2048**2, 307) == by_hand


@pytest.mark.parametrize(
    ("name", "kind", "tera"),
    [
        ("NVIDIA A100-SXM4-80GB", "bf16", 312),
        ("NVIDIA A100 80GB PCIe", "tf32", 156),
        ("A100-PCIE-40GB", "float32", 19.5),
        ("NVIDIA A10", "bf16", 125),
        ("NVIDIA A10G", "bf16", 70),
        ("NVIDIA H100 80GB HBM3", "bf16", 989),
        ("NVIDIA H100 PCIe", "bf16", 756),
        ("NVIDIA H200", "bf16", 989),
        ("NVIDIA H200 NVL", "bf16", 835),
        ("NVIDIA L4", "bf16", 121),
        ("NVIDIA L40S", "bf16", 362),
        ("Tesla V100-SXM2-16GB", "fp16", 125),
        ("NVIDIA GeForce RTX 4090", "float32", 82.6),
    ],
)
def test_peaks(name: str, kind: str, tera: float) -> None:
    assert peak_flops(name, kind) == tera * 1e12


def test_unknown_peaks_are_unavailable() -> None:
    assert peak_flops("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16") is None
    assert peak_flops("Tesla V100-SXM2-16GB", "bf16") is None
    assert peak_flops("AMD Instinct MI300X", "bf16") is None
    assert peak_of(CPU, torch.bfloat16) is None


def test_a_window_of_throughput(vocabulary: GeneVocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    config = bert_config("tiny", vocabulary, 16)
    clock = iter([0.0, 1.0, 1.5, 4.0, 9.0])
    monkeypatch.setattr(throughput, "time", SimpleNamespace(perf_counter=lambda: next(clock)))  # for it alone
    flops = StepWork(config).flops(48, 16**2 + 3**2 + 9**2 + 1 + 12**2 + 7**2, 5)
    window = ThroughputWindow(StepWork(config), peak=flops)
    with window.waiting():
        pass
    window.add(row_lengths(tokens(), 0))
    found = window.metrics(world_size=2, masked=5)
    assert found == {"cells_per_s": 3.0, "tokens_per_s": 24.0, "data_wait_share": 0.125, "mfu": pytest.approx(0.25)}
    assert "mfu" not in ThroughputWindow(StepWork(config), peak=None).metrics(1, 0, seconds=1.0)


def test_lengths_count_up_beyond_small_integers(vocabulary: GeneVocabulary) -> None:
    window = ThroughputWindow(bert_config("tiny", vocabulary, 16), None)
    window.add(np.full(3, 4096, np.uint16))  # type: ignore[arg-type]
    assert window.squared_lengths == 3 * 4096**2


def test_memory_of_this_process() -> None:
    before = peak_memory_bytes(CPU)
    assert 50 << 20 < before < 100 << 30
    kept = np.ones(200 << 20, np.uint8)
    assert peak_memory_bytes(CPU) >= before
    del kept


def test_precision_by_device(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = torch.device("cuda")
    assert autocast_dtype("auto", CPU) is None
    assert autocast_dtype("float32", gpu) is None
    assert autocast_dtype("bf16", CPU) == torch.bfloat16
    for has_it, wanted in ((True, torch.bfloat16), (False, None)):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has_it=has_it: has_it)
        assert autocast_dtype("auto", gpu) == wanted
    with pytest.raises(InputError, match="bf16: needs a device that computes in bfloat16; found device cuda"):
        autocast_dtype("bf16", gpu)
    with pytest.raises(InputError, match="must be one of auto, float32, bf16; found 'fp8'"):
        autocast_dtype("fp8", CPU)
    with autocast(None, CPU):
        assert not torch.is_autocast_enabled("cpu")
    with autocast(torch.bfloat16, CPU):
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16


def test_a_step_in_bfloat16_is_close(vocabulary: GeneVocabulary) -> None:
    batch = masked(vocabulary, tokens())
    model = trained(vocabulary, 0.05)
    losses = []
    for dtype in (None, torch.bfloat16):
        torch.manual_seed(0)
        with autocast(dtype, CPU):
            total, count = MaskedGeneLoss(model, vocabulary)(batch)
        assert total.dtype == torch.float32
        assert all(grad.dtype == torch.float32 for grad in gradients(model, total).values())
        losses.append((total / count).item())
    assert losses[1] == pytest.approx(losses[0], rel=0.02)


@pytest.mark.parametrize("packed", [False, True])
def test_checkpointed_activations_change_nothing(vocabulary: GeneVocabulary, *, packed: bool) -> None:
    ids_nl = tokens()
    generator = step_generator(0, 0, 0, CPU)
    batch = GeneMasker(vocabulary, 0.3, CPU)(unpad(ids_nl, 0) if packed else ids_nl, generator)
    model = trained(vocabulary, 0.1)
    loss, found = MaskedGeneLoss(model, vocabulary), []
    for again in (False, True):
        if again:
            checkpoint_activations(model)
        calls: list[int] = []
        hook = model.bert.encoder.layer[0].intermediate.register_forward_hook(lambda *_: calls.append(1))  # noqa: B023
        torch.manual_seed(0)
        found.append(gradients(model, loss(batch)[0]))
        hook.remove()
        assert len(calls) == 1 + again
    assert_same(found[1], found[0], rtol=1e-6)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
def test_layers_compile_once_for_all_lengths(vocabulary: GeneVocabulary) -> None:
    graphs: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> object:
        graphs.append(1)
        return graph

    model, whole = trained(vocabulary), trained(vocabulary)
    compile_layers(model, backend=backend)
    assert list(model.state_dict()) == list(whole.state_dict())
    loss, expected = MaskedGeneLoss(model, vocabulary), MaskedGeneLoss(whole, vocabulary)
    for width in (16, 12, 9, 14):
        batch = masked(vocabulary, tokens()[:, :width])
        assert loss(batch)[0].item() == pytest.approx(expected(batch)[0].item(), rel=1e-5)
    assert len(graphs) == 1


def test_the_benchmarks_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.benchmarks import gpu_training

    monkeypatch.setattr("sys.argv", ["gpu_training"])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    gpu_training.main()
    assert capsys.readouterr().out == "no GPU: nothing measured\n"
    monkeypatch.setattr("sys.argv", ["gpu_training", "--smoke"])
    gpu_training.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["tiny transformers", "tiny padded", "tiny packed"]
    assert all("MFU unavailable" in line for line in lines)
    losses = [line.split()[-1] for line in lines]
    assert losses[0] == losses[1]  # the same masks, the same dropout
