"""Tensors in place of arrays: of any dtype, device, layout and history, wherever arrays are taken."""

import numpy as np
import pytest

import rlvar
from rlvar import _check

torch = pytest.importorskip("torch", reason="needs torch")

DEVICES = ["cpu", *["cuda"] * torch.cuda.is_available()]
PLAIN = torch.tensor([[1.0, -2.0], [0.0, 3.0]])


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support", "ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("device", DEVICES)
def test_tensors_of_every_layout_dtype_and_history_are_taken(device):
    plain = PLAIN.to(device)
    leaf = plain.clone().requires_grad_()
    for tensor in (
        leaf,
        leaf * 1,
        list(leaf),
        [list(row) for row in leaf],
        torch.nn.Parameter(plain),
        plain.double(),
        plain.half(),
        plain.bfloat16(),
        plain.to(torch.float8_e4m3fn),
        plain.int(),
        plain.to_sparse(),
        plain.to_sparse_csr(),
        torch._neg_view(-plain),
        torch.complex(plain, -plain).conj().imag,
        plain.T.contiguous().T,
        torch.quantize_per_tensor(plain.cpu(), 0.5, 0, torch.qint8),
    ):
        np.testing.assert_array_equal(_check.floats("x", tensor), [[1, -2], [0, 3]])
    for dtype in (torch.bool, torch.uint8, torch.int8, torch.uint16, torch.int64):
        np.testing.assert_array_equal(_check.floats("x", plain.abs().to(dtype)) != 0, [[1, 1], [0, 1]])
    assert leaf.requires_grad
    assert leaf.grad is None


def test_a_float32_tensor_is_not_copied():
    leaf = torch.ones(4, 3, 2, requires_grad=True)
    assert np.shares_memory(rlvar.Rollouts(leaf, torch.ones(4)).scores, leaf.detach().numpy())
    rows = torch.ones(9, 2)
    assert np.shares_memory(rlvar.Rollouts.packed(rows, [4, 5], [1, 2]).scores, rows.numpy())


@pytest.mark.parametrize(
    ("tensor", "match"),
    [
        (torch.ones(2, device="meta"), "it is a meta tensor, which has no data"),
        (torch.nested.nested_tensor([PLAIN[0]], layout=torch.jagged), "it is a nested tensor; pad it"),
        (PLAIN.cfloat(), "got dtype complex64"),
    ],
    ids=["meta", "nested", "complex"],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_tensors_without_real_numbers_are_refused(tensor, match):
    with pytest.raises(TypeError, match=f"x .*{match}"):
        _check.floats("x", tensor)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_every_argument_of_rollouts_may_be_a_tensor(device, dtype):
    generator = torch.Generator().manual_seed(0)
    n, t, d = 24, 5, 3
    lengths = torch.randint(1, t + 1, (n,), generator=generator)
    scores, *others = torch.randn(5, n, t, d, generator=generator).to(dtype)
    rewards, values, logp, behavior = (x[:, :, 0] for x in others)
    tensors = {
        "rewards": rewards,
        "lengths": lengths,
        "values": values,
        "groups": torch.arange(n) // 4,
        "logp": logp,
        "behavior_logp": behavior,
        "score_squares": values.abs(),
        "terminated": rewards > 1,
        "truncated": rewards < -1,
        "next_values": values,
        "bootstrap_value": values[:, 0],
        "tokens": lengths * 9,
    }

    def there(x):
        return x.to(device).requires_grad_() if x.is_floating_point() else x.to(device)

    ours = rlvar.Rollouts(there(scores), **{name: there(x) for name, x in tensors.items()})
    arrays = {
        name: (x.float() if x.dtype == torch.bfloat16 else x).detach().numpy() for name, x in tensors.items()
    }
    given = scores.float() if dtype == torch.bfloat16 else scores
    theirs = rlvar.Rollouts(given.detach().numpy(), **arrays)
    for name in ("scores", *tensors):
        np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))
    rows = torch.arange(n, device=device) % 2 == 0
    np.testing.assert_array_equal(ours[rows].rewards, theirs[::2].rewards)
    np.testing.assert_array_equal(ours[torch.tensor([5, 2], device=device)].lengths, theirs.lengths[[5, 2]])


@pytest.mark.filterwarnings("ignore:only")
def test_verbs_take_tensors_in_place_of_arrays():
    generator = torch.Generator().manual_seed(0)
    scores, weights = torch.randn(2, 8, 4, 4, generator=generator)
    weights = weights[:, :, 0]
    s, w = scores.numpy(), weights.numpy()
    scores, weights = scores.requires_grad_(), weights.requires_grad_()
    np.testing.assert_array_equal(rlvar.covariance(scores, weights), rlvar.covariance(s, w))
    p = torch.arange(8)
    ours, theirs = (rlvar.decompose(*each, groups=p // 2) for each in ((scores, weights), (s, w)))
    assert ours.to_dict() == theirs.to_dict()
    assert repr(rlvar.on_policy_test(scores)) == repr(rlvar.on_policy_test(s))
    one, other = rlvar.CovarianceAccumulator(), rlvar.CovarianceAccumulator()
    one.update(scores, weights, sample_weight=p)
    other.update(s, w, sample_weight=p.numpy())
    np.testing.assert_array_equal(one.covariance(), other.covariance())
    rollouts = rlvar.Rollouts(s, w)
    ours, theirs = (
        rlvar.compare(rollouts, [("mine", each), ("by function", lambda r, each=each: each)], scale=scale)
        for each, scale in ((weights, torch.ones(4)), (w, np.ones(4)))
    )
    assert ours.to_dict() == theirs.to_dict()
    for gamma in (torch.tensor(0.5, requires_grad=True), torch.tensor(0.5).bfloat16()):
        np.testing.assert_array_equal(rlvar.reward_to_go([[1.0, 1.0]], gamma), [[1.5, 1.0]])
    np.testing.assert_array_equal(rlvar.rloo(PLAIN[0], torch.tensor([7, 7])), [3, -3])
