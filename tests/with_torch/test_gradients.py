"""Whole models where steps do not matter: sums of one backward pass a token, whatever they are made of."""

import weakref

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch")
transformers = pytest.importorskip("transformers", reason="needs transformers")
import rlvar  # noqa: E402
import tiny_models  # noqa: E402
from rlvar.torch import Sketch, sequence_scores, token_scores, unit_gradients  # noqa: E402
from rlvar.torch.backward import Backward  # noqa: E402
from rlvar.torch.count_sketch import CountSketch  # noqa: E402

GROUPS = [0, 0, 0, 1, 1, 1, 1, 1]
REWARDS = np.array([0.0, 1.0, 0.5, 1.0, 0.0, 0.0, 1.0, 0.3])
IDS, ATTENDED, RESPONSE = tiny_models.batch(8)
TOKEN_WEIGHTS = np.random.default_rng(0).standard_normal(RESPONSE.shape)


class Precise(torch.overrides.TorchFunctionMode):
    """Run in float64 what transformers runs in float32 whatever the model's precision."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.float:
            return args[0]
        wider = [torch.float64 if each is torch.float32 else each for each in args]
        named = {k: torch.float64 if v is torch.float32 else v for k, v in (kwargs or {}).items()}
        return function(*wider, **named)


def summed(model, weights, parameters=None, **options):
    """Return sum_t w[n,t] S[n,t] (N, D) in float64 for weights in the shape of the response mask."""
    every = dict(model.named_parameters()) if parameters is None else parameters
    result = np.zeros((len(IDS), sum(each.numel() for each in every.values())))
    found = tiny_models.one_backward_a_token(model, IDS, ATTENDED, RESPONSE, every, **options)
    for row, t, gradients in found:
        weight = weights[row, RESPONSE[row].nonzero()[t, 0]]
        result[row] += weight * torch.cat([each.flatten() for each in gradients.values()]).double().numpy()
    return result


def of_units(rows):
    return np.stack([rows[:3].mean(axis=0), rows[3:].mean(axis=0)])


def close(found, wanted, tolerance):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


@pytest.fixture(scope="module")
def llama():
    return tiny_models.make("llama")


@pytest.fixture(scope="module")
def scores(llama):
    """s[n] (N, D)."""
    with Precise():
        return summed(llama, np.ones(RESPONSE.shape))


@pytest.mark.parametrize("name", tiny_models.NAMES)
def test_gradients_are_sums_of_one_backward_pass_a_token(name):
    model, batch = tiny_models.make(name), (IDS, ATTENDED, RESPONSE)
    advantages = rlvar.rloo(REWARDS, GROUPS)
    with Precise():
        wanted = summed(model, np.ones(RESPONSE.shape))
        scored = sequence_scores(model, *batch, sketch=None)
        mine = of_units(summed(model, TOKEN_WEIGHTS))
        for extra in ((), ("single", "dr-grpo", "single-mean", "reinforce++", "james-stein")):
            weights = ("rloo", ("mine", TOKEN_WEIGHTS), *extra)
            found = unit_gradients(model, *batch, weights, GROUPS, rewards=REWARDS, sketch=None)
            close(found["rloo"], of_units(advantages[:, None] * wanted), 1e-10)
            close(found["mine"], mine, 1e-10)
    assert found.passes == {"of units": 2, "of rollouts": 8}
    close(scored.scores[:, 0], wanted, 6e-8)  # rounded to float32
    assert scored.scores.dtype == np.float32
    tokens = token_scores(model, *batch, sketch=Sketch(1))
    np.testing.assert_allclose(scored.logp, tokens.logp, atol=1e-5)
    np.testing.assert_allclose(scored.log_sum_squares, tokens.log_sum_squares, atol=1e-5)
    assert scored.scores_of == found.scores_of == tokens.scores_of


def test_the_sketch_of_a_gradient_is_the_same_for_sequences_and_units(llama, scores):
    sketch = Sketch(128, seed=3)
    with Precise():
        scored = sequence_scores(llama, IDS, ATTENDED, RESPONSE, sketch=sketch)
        found = unit_gradients(llama, IDS, ATTENDED, RESPONSE, {"a": REWARDS}, None, sketch=sketch)
    close(scored.scores[:, 0] * REWARDS[:, None], found["a"], 1e-6)
    flat, names = CountSketch(sketch), {name: each.shape for name, each in llama.named_parameters()}
    parts = np.split(scores[0], np.cumsum([shape.numel() for shape in names.values()])[:-1])
    for (name, shape), part in zip(names.items(), parts, strict=True):
        flat.add(name, torch.from_numpy(part).view(shape))
    close(scored.scores[0, 0], flat.take(), 1e-6)


# The moments that are derived in the module of count sketches.


def sketches(gradients, k, seeds, shape):
    """Sketches (seeds, N, k) of gradients (N, D)."""
    result = np.empty((seeds, len(gradients), k))
    for seed in range(seeds):
        sketch = CountSketch(Sketch(k, seed))
        for n, gradient in enumerate(gradients):
            sketch.add("w", torch.from_numpy(gradient).view(shape))
            result[seed, n] = sketch.take()
    return result


@pytest.mark.parametrize(("k", "shape"), [(32, (80, 64)), (61, (640, 8)), (64, (5, 16, 64))])
def test_a_count_sketch_is_unbiased_with_at_most_the_error_of_a_dense_one(rng, k, shape):
    inputs = rng.standard_normal((4, 1, 64))
    inputs[..., [7, 50]] *= [30, 10]  # as in a layer with a few large inputs
    gradients = (rng.standard_normal((4, 80, 1)) * inputs).reshape(4, -1)
    y = gradients - gradients.mean(axis=0)
    v = np.square(y).sum()
    dense = 2 / k * (np.square(y @ y.T).sum() - np.square(np.square(y).sum(axis=0)).sum())
    found = sketches(y, k, 300, shape)
    parts = np.square(found).sum(axis=1)
    totals = parts.sum(axis=1)
    assert abs(totals.mean() - v) < 4 * totals.std() / 300**0.5
    products = found @ found.transpose(0, 2, 1)
    assert (np.abs(products.mean(axis=0) - y @ y.T) < 5 * products.std(axis=0) / 300**0.5 + 1e-9).all()
    assert totals.var() < 1.3 * dense
    # Each coordinate is like every other, and their spread is what a dense sketch's would be.
    each = parts.mean(axis=0)
    assert (np.abs(each - v / k) < 5 * parts.std(axis=0) / 300**0.5).all()
    jackknife = k * parts.var(axis=1, ddof=1)
    assert jackknife.mean() == pytest.approx(dense, rel=0.25)


def test_inputs_that_are_large_in_all_rows_do_not_meet(rng):
    # All in one place of k, with a plain fold: then the error would be that of a sketch of one place.
    gradient = np.zeros((64, 128))
    gradient[:, 5] = rng.standard_normal(64)
    totals = np.square(sketches([gradient], 64, 50, gradient.shape)).sum(axis=(1, 2))
    np.testing.assert_allclose(totals, np.square(gradient).sum(), rtol=1e-12)


def test_sequence_scores_compare_as_token_scores_do(llama):
    groups = [0, 0, 1, 1, 2, 2, 3, 3]
    by_token = token_scores(llama, IDS, ATTENDED, RESPONSE, sketch=None).rollouts(REWARDS, groups=groups)
    scored = sequence_scores(llama, IDS, ATTENDED, RESPONSE, sketch=None)
    by_sequence = scored.rollouts(REWARDS, groups=groups)
    names = ("single", "rloo", "grpo", "opo", "vl-norm", "single-optimal")
    for aggregation in ("sum", "sequence-mean", "token-mean"):
        one, other = (rlvar.compare(r, names, aggregation=aggregation) for r in (by_token, by_sequence))
        for a, b in zip(one, other, strict=True):
            for what in ("variance", "ratio", "signal"):
                x, z = getattr(a, what), getattr(b, what)
                assert (x.value, x.low) == pytest.approx((z.value, z.low), rel=2e-5)


def test_rollouts_of_sequences_add_rewards_up_and_refuse_what_tells_tokens_apart(llama):
    scored = sequence_scores(llama, IDS, ATTENDED, RESPONSE)
    rewards = np.where(RESPONSE, TOKEN_WEIGHTS, np.nan)
    rollouts = scored.rollouts(rewards, groups=GROUPS, behavior_logp=scored.logp - 0.01)
    np.testing.assert_allclose(rollouts.rewards, np.nansum(rewards, axis=1))
    np.testing.assert_array_equal(rollouts.tokens, RESPONSE.sum(1))
    np.testing.assert_allclose(rollouts.logp[:, 0], scored.logp.sum(axis=1))
    np.testing.assert_allclose(rollouts.logp - rollouts.behavior_logp, 0.01 * RESPONSE.sum(1)[:, None])
    assert rollouts.sketched
    with pytest.raises(ValueError, match="multi-mean"):
        rlvar.compare(rollouts, "multi-mean")
    with pytest.raises(TypeError, match="values goes with token scores"):
        scored.rollouts(REWARDS, values=TOKEN_WEIGHTS)


def test_estimators_that_know_tokens_have_the_weights_of_compare(llama):
    rewards = np.where(RESPONSE, TOKEN_WEIGHTS, 0.0)
    by_token = token_scores(llama, IDS, ATTENDED, RESPONSE, sketch=None)
    asked = ("multi", "otb-verl", rlvar.estimator("gae", lam=0.9), ("mine", lambda r: r.logp))
    more = {"values": TOKEN_WEIGHTS / 2}
    found = unit_gradients(
        llama, IDS, ATTENDED, RESPONSE, asked, GROUPS, rewards=rewards, sketch=None, **more
    )
    rollouts = by_token.rollouts(rewards, groups=GROUPS, **more)
    for each, name in zip(asked, found, strict=True):
        weights = each[1](rollouts) if isinstance(each, tuple) else None
        if weights is None:
            weights = (rlvar.estimator(each) if isinstance(each, str) else each).weights(rollouts)
        wanted = of_units(np.einsum("nt,ntd->nd", weights, by_token.scores.astype(np.float64)))
        close(found[name], wanted, 1e-5)
    assert found.unbiased == ("multi",)


@pytest.fixture
def backwards(monkeypatch):
    """Number of rows of each backward pass."""
    rows, own = [], Backward.gradient

    def counted(self, values, weights, **options):
        rows.append(len(values))
        return own(self, values, weights, **options)

    monkeypatch.setattr(Backward, "gradient", counted)
    return rows


def test_the_fewer_backward_passes_are_taken(llama, backwards):
    batch, rng = (IDS, ATTENDED, RESPONSE), np.random.default_rng(1)
    few = unit_gradients(llama, *batch, {"a": REWARDS + 1, "b": REWARDS + 2}, GROUPS)
    assert backwards == [3, 3, 5, 5]
    assert few.passes == {"of units": 4, "of rollouts": 0}
    assert "backward passes: 4 of units" in repr(few)
    backwards.clear()
    many = {str(e): rng.standard_normal(8) for e in range(4)}  # fewer than the rollouts of the larger group
    found = unit_gradients(llama, *batch, many, GROUPS)
    assert backwards == [1, 1, 1, 5, 5, 5, 5]
    assert found.passes == {"of units": 4, "of rollouts": 3}
    backwards.clear()
    found = unit_gradients(llama, *batch, {**many, "token": TOKEN_WEIGHTS}, GROUPS)
    assert backwards == [3, 1, 1, 1, 5, 5, 5, 5, 5]
    backwards.clear()
    # Each rollout alone, since nothing more fits.
    unit_gradients(llama, *batch, {"a": REWARDS + 1, "b": REWARDS + 2}, GROUPS, memory=1)
    assert backwards == [1] * 8
    backwards.clear()
    dead = {"a": np.where(np.array(GROUPS) == 0, 0.0, REWARDS + 1)}
    dead["the same"] = dead["a"].copy()
    found = unit_gradients(llama, *batch, dead, GROUPS)
    assert backwards == [5]
    assert not found["a"][0].any()
    np.testing.assert_array_equal(found["a"], found["the same"])


def test_rollouts_that_run_together_keep_to_the_memory(llama, backwards):
    network = Backward.kept
    kept = []

    def measured(self, chunk):
        kept.append(network(self, chunk))
        return kept[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Backward, "kept", measured)
        one = unit_gradients(llama, IDS, ATTENDED, RESPONSE, {"a": TOKEN_WEIGHTS}, GROUPS, sketch=None)
    backwards.clear()
    two = unit_gradients(
        llama, IDS, ATTENDED, RESPONSE, {"a": TOKEN_WEIGHTS}, GROUPS, sketch=None, memory=2 * kept[0]
    )
    assert backwards == [2, 1, 2, 2, 1]
    close(two["a"], one["a"], 1e-6)


@pytest.mark.parametrize("sketch", [Sketch(8), None])
def test_a_gradient_is_freed_before_the_next_parameter_has_one(llama, monkeypatch, sketch):
    from rlvar.torch import count_sketch

    kind = count_sketch.Exact if sketch is None else CountSketch
    own, alive, names = kind.add, [], []

    def add(self, name, gradient):
        assert not any(each() is not None for each in alive)
        alive[:] = [weakref.ref(gradient)]
        names.append(name)
        own(self, name, gradient)

    monkeypatch.setattr(kind, "add", add)
    sequence_scores(llama, IDS[:1], ATTENDED[:1], RESPONSE[:1], sketch=sketch)
    assert sorted(names) == sorted(name for name, _ in llama.named_parameters())
    assert names[0] == "lm_head.weight"  # as they come, not at the end


def checkpointed(model, options=None):
    newer = getattr(model, "activation_checkpointing_enable", None)  # from transformers 5.24 on
    (newer or model.gradient_checkpointing_enable)(options)


def state(model):
    return {
        "parameters": [id(each) for each in model.parameters()],
        "grads": [id(each.grad) for each in model.parameters()],
        "required": [each.requires_grad for each in model.parameters()],
        "training": [each.training for each in model.modules()],
        "own": [sorted(vars(each)) for each in model.modules()],
        "hooks": [each._backward_hooks for each in model.parameters()],
    }


def test_the_model_is_left_as_it_was_and_no_hook_of_its_parameters_runs(monkeypatch):
    model = tiny_models.make("llama").train()
    checkpointed(model)
    first, *others = model.parameters()
    first.grad = torch.ones_like(first)
    for each in others:
        each.register_post_accumulate_grad_hook(lambda _: pytest.fail("the optimiser has stepped"))
    others[0].requires_grad_(False)
    before, value = state(model), first.grad.clone()
    scored = sequence_scores(model, IDS, ATTENDED, RESPONSE)
    assert state(model) == before
    assert scored.scores_of == "all 4,400 trainable parameters of LlamaForCausalLM"
    monkeypatch.setattr(CountSketch, "add", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        unit_gradients(model, IDS, ATTENDED, RESPONSE, {"a": REWARDS}, GROUPS)
    assert state(model) == before
    torch.testing.assert_close(first.grad, value, rtol=0, atol=0)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_the_callers_context_does_not_matter(llama, scores, context):
    with Precise(), context():
        scored = sequence_scores(llama, IDS, ATTENDED, RESPONSE, sketch=None)
        assert torch.is_grad_enabled() is False
    close(scored.scores[:, 0], scores, 6e-8)


def test_a_distributed_wrapper_neither_changes_nor_hears_anything(llama, scores, tmp_path):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = torch.nn.parallel.DistributedDataParallel(llama)
        wrapped(input_ids=IDS, attention_mask=ATTENDED)  # it expects a backward pass now
        with Precise():
            scored = sequence_scores(wrapped, IDS, ATTENDED, RESPONSE, sketch=None)
    finally:
        torch.distributed.destroy_process_group()
    close(scored.scores[:, 0], scores, 6e-8)
    assert all(each.grad is None for each in llama.parameters())


def test_bfloat16_is_added_up_in_more(llama):
    half = tiny_models.make("llama").to(torch.bfloat16)
    exact = tiny_models.make("llama").to(torch.bfloat16).double()
    wanted = sequence_scores(exact, IDS, ATTENDED, RESPONSE, sketch=None).scores
    found = sequence_scores(half, IDS, ATTENDED, RESPONSE, sketch=None).scores
    assert np.linalg.norm(found - wanted) < 16 * 2.0**-8 * np.linalg.norm(wanted)  # some roundings deep
    gradient = torch.full((64, 256), 1 / 3).to(torch.bfloat16)
    sketch = CountSketch(Sketch(2))
    sketch.add("w", gradient)
    rounded = sketch.take()
    sketch.add("w", gradient.double())
    close(rounded, sketch.take(), 1e-6)


def adapted():
    peft = pytest.importorskip("peft", reason="needs peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj", "down_proj"], lora_dropout=0.5)
    model = peft.get_peft_model(tiny_models.make("llama"), config).double()
    torch.manual_seed(0)
    with torch.no_grad():
        for each in model.parameters():
            if each.requires_grad:
                each.add_(0.1 * torch.randn_like(each))
    return model


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's
def test_with_lora_the_adapters_alone_count():
    lora = adapted()
    adapters = {name: each for name, each in lora.named_parameters() if each.requires_grad}
    lora.eval()
    with Precise():
        wanted = summed(lora, np.ones(RESPONSE.shape), adapters)
    lora.train()
    with Precise():
        scored = sequence_scores(lora, IDS, ATTENDED, RESPONSE, sketch=None)
    close(scored.scores[:, 0], wanted, 6e-8)
    size = sum(each.numel() for each in adapters.values())
    assert scored.scores_of == f"all {size:,} trainable parameters of LlamaForCausalLM"


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_checkpointed_layers_give_the_same_numbers_without_dropout(reentrant, training):
    sizes = {"vocab_size": tiny_models.VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
    drops = dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.5)
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(**sizes, **drops, bos_token_id=1, eos_token_id=2)
    ).double()
    plain = sequence_scores(model, IDS, ATTENDED, RESPONSE, sketch=None)
    options = {"use_reentrant": reentrant}
    checkpointed(model, options)
    model.train(training)
    calls = []
    hook = model.transformer.h[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    found = sequence_scores(model, IDS, ATTENDED, RESPONSE, sketch=None)
    hook.remove()
    assert len(calls) == 2 * len(IDS)  # once more in each backward pass
    np.testing.assert_array_equal(found.scores, plain.scores)
    weights = {"rloo": rlvar.rloo(REWARDS, GROUPS), "token": TOKEN_WEIGHTS}  # two passes from one forward
    units = unit_gradients(model, IDS, ATTENDED, RESPONSE, weights, GROUPS, sketch=None)
    assert units.passes == {"of units": 4, "of rollouts": 0}
    close(units["rloo"], of_units(weights["rloo"][:, None] * plain.scores[:, 0]), 1e-6)


def test_a_token_that_warping_removes_has_no_score(llama):
    def policy(z):
        kept = z >= z.topk(12).values[..., -1:]
        logp = z.masked_fill(~kept, -torch.inf).log_softmax(-1)
        return torch.where(kept, logp, 0.0)

    with Precise():
        scored = sequence_scores(llama, IDS, ATTENDED, RESPONSE, sketch=None, top_k=12)
        wanted = summed(llama, np.ones(RESPONSE.shape), policy=policy)
    assert np.isneginf(scored.logp).any()
    close(scored.scores[:, 0], wanted, 6e-8)


def test_the_temperature_divides_logits(llama):
    with Precise():
        wanted = summed(llama, TOKEN_WEIGHTS, policy=lambda z: (z / 0.7).log_softmax(-1))
        found = unit_gradients(
            llama, IDS, ATTENDED, RESPONSE, {"a": TOKEN_WEIGHTS}, None, sketch=None, temperature=0.7
        )
    close(found["a"], wanted, 1e-10)


# Preconditioning: what an optimiser has just done tells what it divides by.


def accelerated(optimizer):
    accelerate = pytest.importorskip("accelerate", reason="needs accelerate")
    return accelerate.Accelerator(cpu=True).prepare(optimizer)


OPTIMIZERS = {
    "Adam": torch.optim.Adam,
    "AdamW": lambda p, **o: torch.optim.AdamW(p, weight_decay=0.0, **o),
    "amsgrad": lambda p, **o: torch.optim.Adam(p, amsgrad=True, **o),
    "accelerate": lambda p, **o: torch.optim.Adam(p, **o),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_gradients_are_divided_as_the_optimiser_divides_them(name):
    model = tiny_models.make("llama")
    parameters = list(model.parameters())
    # Without momentum a step is lr g / (sqrt(v) + eps).
    optimizer = OPTIMIZERS[name](parameters, lr=1e-3, betas=(0.0, 0.9), eps=1e-3)
    torch.manual_seed(0)
    for size in (3.0, 1.0):  # the largest v is not the last
        for each in parameters:
            each.grad = size * torch.randn_like(each)
        before = [each.detach().clone() for each in parameters]
        optimizer.step()
    steps = [(b - each.detach()) / 1e-3 for b, each in zip(before, parameters, strict=True)]
    scale = torch.cat([(each.grad / s).flatten() for each, s in zip(parameters, steps, strict=True)]).numpy()
    given = accelerated(optimizer) if name == "accelerate" else optimizer
    with Precise():
        plain = sequence_scores(model, IDS[:2], ATTENDED[:2], RESPONSE[:2], sketch=None)
        found = sequence_scores(model, IDS[:2], ATTENDED[:2], RESPONSE[:2], sketch=None, precondition=given)
    close(found.scores, plain.scores / scale, 1e-6)
    assert found.scores_of == "all 4,656 parameters of LlamaForCausalLM, preconditioned"
    # In another precision, the same to that.
    for each in parameters:
        for key in ("exp_avg_sq", "max_exp_avg_sq"):
            if key in optimizer.state[each]:
                optimizer.state[each][key] = optimizer.state[each][key].to(torch.bfloat16)
    half = sequence_scores(model, IDS[:2], ATTENDED[:2], RESPONSE[:2], sketch=None, precondition=given)
    np.testing.assert_allclose(half.scores, found.scores, rtol=5e-3, atol=1e-6)


def test_what_is_no_adam_that_has_stepped_with_all_parameters_is_refused(llama):
    batch = IDS, ATTENDED, RESPONSE
    for optimizer in (torch.optim.Adam(llama.parameters()), torch.optim.SGD(llama.parameters(), lr=0.1)):
        with pytest.raises(ValueError, match=r"an Adam that has stepped \(model.embed_tokens.weight\)"):
            sequence_scores(llama, *batch, precondition=optimizer)
    with pytest.raises(ValueError, match=r"does not train it \(model.embed_tokens.weight\)"):
        sequence_scores(llama, *batch, precondition=torch.optim.Adam(llama.lm_head.parameters()))
    with pytest.raises(TypeError, match="precondition must be a torch optimizer, got float"):
        sequence_scores(llama, *batch, precondition=0.1)


@pytest.mark.parametrize(
    ("weights", "options", "message"),
    [
        ("rloo", {}, "estimator 'rloo' needs rewards: pass rewards="),
        (("rloo", "otb"), {"rewards": REWARDS}, "'otb' is fitted to scores"),
        ({"a": REWARDS}, {"rewards": REWARDS}, "rewards goes with estimators by name"),
        ({}, {}, "weights must name at least one estimator"),
        ({"a": REWARDS[:3]}, {}, r"weights\['a'\] must have shape \(N,\) = \(8,\), got \(3,\)"),
        ({"a": TOKEN_WEIGHTS[:, :5]}, {}, r"weights\['a'\] must have one of the shapes"),
        ({"a": REWARDS * np.nan}, {}, r"weights\['a'\] must be finite"),
        ("nothing", {"rewards": REWARDS}, "unknown estimator 'nothing'"),
        ("gae", {"rewards": REWARDS}, "'gae' needs values"),
        ({"a": REWARDS}, {"sketch": 8}, "sketch must be a Sketch or None, got int"),
        ({"a": REWARDS * 1e300}, {}, "the gradient of unit 0 is not finite"),
    ],
)
def test_what_does_not_fit_is_named(llama, weights, options, message):
    model = tiny_models.make("llama").float() if "not finite" in message else llama
    with pytest.raises((ValueError, TypeError), match=message):
        unit_gradients(model, IDS, ATTENDED, RESPONSE, weights, GROUPS, **options)


def test_progress_counts_backward_passes(llama):
    seen = []
    unit_gradients(
        llama, IDS, ATTENDED, RESPONSE, {"a": REWARDS}, GROUPS, progress=lambda *each: seen.append(each)
    )
    assert seen == [(1, 2), (2, 2)]
