"""Token scores of parts of language models, against one autograd pass a token."""

import copy

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="rlvar.torch needs torch")
hf = pytest.importorskip("transformers", reason="language models need transformers")

from torch.overrides import TorchFunctionMode  # noqa: E402

import rlvar  # noqa: E402
import tiny_models  # noqa: E402
from rlvar.torch import Sketch, head, inputs, parts, token_scores  # noqa: E402
from rlvar.torch.inputs import Network, Tokens  # noqa: E402
from rlvar.torch.policy import Policy  # noqa: E402

CHOOSERS = {"final_norm": parts._final_norm, "head": parts._head, "last_block": parts._last_block}


def phi():
    """An untied head with a bias, blocks whose attention and MLP share a norm."""
    torch.manual_seed(3)
    model = hf.PhiForCausalLM(hf.PhiConfig(**tiny_models._COMMON))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model.double().eval()


MODELS = {**{name: lambda name=name: tiny_models.make(name) for name in tiny_models.NAMES}, "phi": phi}


@pytest.fixture(scope="module", params=MODELS)
def case(request):
    """A model whose tied head is another parameter with the same numbers, its batch, and its scores."""
    model, batch = MODELS[request.param](), tiny_models.batch()
    apart = copy.deepcopy(model)
    embeddings = apart.get_output_embeddings()
    embeddings.weight = torch.nn.Parameter(embeddings.weight.detach().clone())
    with tiny_models.precise():
        every = tiny_models.one_backward_a_token(model, *batch)
        untied = tiny_models.one_backward_a_token(apart, *batch)
    return model, apart, batch, every, untied


def computed(model, batch, of, policy=None, sketch=None):
    """Scores in float64, and the parameters that they are of."""
    tokens, network = Tokens.of(*batch), Network(model)
    with tiny_models.precise(), inputs.still(network.module):
        found = parts.part_scores(
            network, tokens, of, sketch, policy or Policy(), None, 1 << 30, lambda _: None, np.float64
        )
        return found, CHOOSERS[of](head.Head(network, tokens))[0]


def right(truth, names, like):
    result = np.zeros_like(like)
    for row, t, gradients in truth:
        result[row, t] = torch.cat([gradients[name].flatten() for name in names]).numpy()
    return result


@pytest.mark.parametrize("of", ["final_norm", "last_block"])
def test_scores_of_parts_are_those_of_one_backward_pass_a_token(case, of):
    model, _, batch, every, _ = case
    found, chosen = computed(model, batch, of)
    expected = right(every, [part.name for part in chosen], found.scores)
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(found.scores, expected, rtol=0, atol=1e-10)


def test_scores_of_the_head_are_those_of_its_output_side(case):
    model, apart, batch, _, untied = case
    found, chosen = computed(model, batch, "head")
    names = ["embed_out.weight" if hasattr(apart, "embed_out") else "lm_head.weight"]
    names += [part.name for part in chosen[1:]]
    np.testing.assert_allclose(found.scores, right(untied, names, found.scores), rtol=0, atol=1e-10)
    tied = model.get_output_embeddings().weight is model.get_input_embeddings().weight
    what = "the output side of the tied embedding of " if tied else "the head of "
    assert found.scores_of == what + type(model).__name__


def test_log_probabilities_come_along(case):
    model, _, batch, _, _ = case
    found, _ = computed(model, batch, "final_norm")
    tokens, network = Tokens.of(*batch), Network(model)
    chunk = tokens.chunk(np.arange(len(tokens.ids)))
    with tiny_models.precise(), torch.no_grad():
        every = network.logits(chunk).log_softmax(-1)
    logp = every.gather(-1, network.targets(chunk)[..., None])[..., 0]
    live = tokens.live
    np.testing.assert_allclose(found.logp[live], logp.numpy()[live], rtol=0, atol=1e-12)
    np.testing.assert_allclose(
        found.log_sum_squares[live], (2 * every).logsumexp(-1).numpy()[live], rtol=0, atol=1e-12
    )
    assert not found.logp[~live].any()


TAKEN = {
    "llama": {"q_proj", "o_proj", "mlp", "post_attention_layernorm", "norm", "lm_head"},
    "qwen3": {"q_proj", "q_norm", "o_proj", "mlp", "post_attention_layernorm", "norm"},
    "gpt2": {"c_proj", "ln_2", "mlp", "ln_f"},
    "neox": {"dense", "post_attention_layernorm", "mlp", "final_layer_norm", "embed_out", "lm_head"},
    "moe": {"q_proj", "o_proj", "gate", "post_attention_layernorm", "norm", "lm_head"},
}


@pytest.mark.parametrize("name", TAKEN)
def test_the_causality_test_leaves_out_what_mixes_positions(name):
    model = tiny_models.make(name)
    found, chosen = computed(model, tiny_models.batch(), "last_block")
    assert set(found.scores_of.partition("(")[2][:-1].split(", ")) <= TAKEN[name]
    assert len(chosen) >= len(TAKEN[name]) - 1
    for part in chosen:
        assert not any(
            word in part.name for word in ("k_proj", "v_proj", "input_layernorm", "experts", "ln_1")
        )
        assert ".0." not in part.name


def test_position_rows_of_keys_are_not_token_scores():
    """What the causality test is for: the rows of one backward pass, of the module after and before it."""
    model, (ids, attended, response) = tiny_models.make("llama"), tiny_models.batch(1)
    truth = tiny_models.one_backward_a_token(model, ids, attended, response)
    block, pairs = model.model.layers[-1], {}

    def keep(name):
        def hook(module, args, output):
            output.register_hook(lambda gradient: pairs.update({name: (gradient[0], args[0][0])}))

        return hook

    for name in ("q_proj", "k_proj"):
        getattr(block.self_attn, name).register_forward_hook(keep(name))
    places = response[0].nonzero()[:, 0] - 1
    tiny_models.log_probs(model, ids, attended)[0, places].sum().backward()
    off = {}
    for name, (gradient, given) in pairs.items():
        scores = torch.stack([g[f"model.layers.1.self_attn.{name}.weight"] for _, _, g in truth])
        rows = torch.einsum("to,ti->toi", gradient, given)
        torch.testing.assert_close(rows.sum(0), scores.sum(0))
        off[name] = float((rows[places] - scores).norm().detach() / scores.norm())
    assert off["q_proj"] < 1e-6
    assert off["k_proj"] > 0.1


@pytest.mark.parametrize("of", ["last_block", "head"])
def test_sketches_are_unbiased_with_the_derived_error(of):
    """Many coordinates, which are independent and equally distributed, stand for many sketches."""
    model, batch = tiny_models.make("qwen3" if of == "head" else "llama"), tiny_models.batch(2)
    k = 20_000
    found, chosen = computed(model, batch, of, sketch=Sketch(k, seed=2))
    exact, _ = computed(model, batch, of)
    bounds = np.cumsum([0, *(part.parameter.numel() for part in chosen)])
    for at in [(0, 0), (1, 2)]:
        blocks = [
            exact.scores[at][start:stop].reshape(part.parameter.shape)
            for part, start, stop in zip(chosen, bounds, bounds[1:], strict=False)
        ]
        square, fourth = sum((b**2).sum() for b in blocks), 0.0
        for block in blocks:
            s = (block**2).sum()
            if block.ndim == 1:
                fourth += 3 * s**2 - 2 * (block**4).sum() - 3 * s**2
                continue
            u, sigma, v = np.linalg.svd(block)
            np.testing.assert_allclose(sigma[1:], 0, atol=1e-10)
            d, a = u[:, 0] * sigma[0], v[0]
            fourth += (3 * (d**2).sum() ** 2 - 2 * (d**4).sum()) * (3 - 2 * (a**4).sum()) - 3 * s**2
        variance = 2 * square**2 + fourth  # of k times one coordinate's square
        squares = k * found.scores[at] ** 2
        assert abs(squares.mean() - square) < 4 * np.sqrt(variance / k)
        assert squares.var() == pytest.approx(variance, rel=0.1)


def test_one_sketch_is_the_start_of_a_larger_one_and_inner_products_are_kept():
    model, batch = tiny_models.make("llama"), tiny_models.batch()
    small, large = (computed(model, batch, "last_block", sketch=Sketch(k))[0].scores for k in (16, 4096))
    np.testing.assert_allclose(small * 4, large[..., :16] * 64, atol=1e-10)
    exact = computed(model, batch, "last_block")[0].scores[0, :3]
    gram = exact @ exact.T
    np.testing.assert_allclose(large[0, :3] @ large[0, :3].T, gram, atol=0.2 * np.trace(gram) / 3)


@pytest.mark.parametrize(
    "options", [{"temperature": 0.7}, {"top_k": 5}, {"top_p": 0.6}, {"temperature": 1.3, "min_p": 0.2}]
)
@pytest.mark.parametrize("of", ["final_norm", "last_block"])
def test_the_policy_that_was_sampled_from_is_scored(of, options):
    model, (ids, attended, response) = tiny_models.make("gemma2"), tiny_models.batch()
    policy = Policy(**options)
    found, chosen = computed(model, (ids, attended, response), of, policy)
    names = [part.name for part in chosen]
    inside = np.isfinite(found.logp)
    with tiny_models.precise():
        for row in range(len(ids)):
            values = tiny_models.log_probs(
                model, ids[row : row + 1], attended[row : row + 1], policy.log_probs
            )[0]
            for t, place in enumerate(response[row].nonzero()[:, 0].tolist()):
                if not inside[row, t]:
                    assert values[place - 1] == -torch.inf
                    assert not found.scores[row, t].any()
                    continue
                gradients = torch.autograd.grad(
                    values[place - 1], [model.get_parameter(name) for name in names], retain_graph=True
                )
                flat = torch.cat([each.flatten() for each in gradients])
                np.testing.assert_allclose(found.scores[row, t], flat.numpy(), rtol=0, atol=1e-10)
    assert inside.any()
    assert not inside.all() or "temperature" in options


def test_factors_of_the_head_are_its_scores():
    for model in (tiny_models.make("llama"), phi()):
        batch = tiny_models.batch()
        factors = rlvar.torch.head_factors(model, *batch)
        assert factors.a.dtype == factors.b.dtype == np.float32
        exact = token_scores(model, *batch, of="head", sketch=None)
        matrix = model.lm_head.weight.numel()
        hidden = model.lm_head.weight.shape[1]
        products = factors.a[..., None] * factors.b[..., None, :]
        flat = products[..., :hidden].reshape(*products.shape[:2], -1)
        np.testing.assert_allclose(exact.scores[..., :matrix], flat, rtol=0, atol=1e-5)
        if model.lm_head.bias is not None:
            np.testing.assert_allclose(exact.scores[..., matrix:], factors.a, rtol=0, atol=1e-5)
            assert (factors.b[exact.lengths > 0][:, 0, -1] == 1).all()
        np.testing.assert_array_equal(factors.lengths, exact.lengths)
        np.testing.assert_array_equal(factors.logp, exact.logp)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # of peft
def test_adapters_on_exact_modules_are_exact():
    peft = pytest.importorskip("peft", reason="adapters need peft")
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "k_proj", "o_proj", "down_proj", "lm_head"])
    model = peft.get_peft_model(tiny_models.make("llama"), config).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(
                    0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
                )
    batch = tiny_models.batch()
    found, chosen = computed(model, batch, "last_block")
    names = [part.name for part in chosen]
    assert len(names) == 8
    assert all("lora_" in name and "k_proj" not in name for name in names)
    assert found.scores_of == (
        "the last block of LlamaForCausalLM "
        "(LoRA of q_proj, LoRA of o_proj, LoRA of down_proj, LoRA of lm_head)"
    )
    chosen = {name: each for name, each in model.named_parameters() if name in names}
    with tiny_models.precise():
        truth = tiny_models.one_backward_a_token(model, *batch, chosen)
    np.testing.assert_allclose(found.scores, right(truth, names, found.scores), rtol=0, atol=1e-10)
    for of in ("final_norm", "head"):
        assert token_scores(model, *batch, of=of).scores_of.endswith("LlamaForCausalLM")


@pytest.mark.parametrize("of", ["final_norm", "last_block", "head"])
def test_padding_and_masks_change_nothing(of):
    model, (ids, attended, response) = tiny_models.make("llama").float(), tiny_models.batch()
    whole = token_scores(model, ids, attended, response, of=of)
    wide = [torch.nn.functional.pad(each, (3, 2)) for each in (ids, attended, response)]
    np.testing.assert_allclose(token_scores(model, *wide, of=of).scores, whole.scores, atol=2e-5)
    gaps = response.clone()
    gaps[:, 5] = 0
    some = token_scores(model, ids, attended, gaps, of=of)
    for row in range(len(ids)):
        kept = [t for t, place in enumerate(response[row].nonzero()[:, 0]) if place != 5]
        np.testing.assert_allclose(some.scores[row, : len(kept)], whole.scores[row, kept], atol=2e-5)
    assert whole.scores.dtype == np.float32
    assert (whole.sketch is None) == (of == "final_norm")


@pytest.mark.parametrize("of", ["final_norm", "last_block", "head"])
def test_models_are_left_as_they_were(of):
    model = tiny_models.make("llama").float().train()
    model.model.layers[0].requires_grad_(False)
    before = {name: (each.clone(), each.requires_grad) for name, each in model.named_parameters()}

    def state():
        return [
            (type(m), m.training, dict(m._forward_hooks), dict(m._forward_pre_hooks), "forward" in vars(m))
            for m in model.modules()
        ]

    was = state()
    token_scores(model, *tiny_models.batch(), of=of)

    def fail(*_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        token_scores(model, *tiny_models.batch(), of=of, progress=fail)
    assert state() == was
    for name, each in model.named_parameters():
        assert torch.equal(each, before[name][0])
        assert each.requires_grad == before[name][1]
        assert each.grad is None


class Largest(TorchFunctionMode):
    """Notes the most numbers that any tensor with the vocabulary as its last axis has."""

    size = 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for each in result if isinstance(result, tuple | list) else [result]:
            if isinstance(each, torch.Tensor) and each.shape[-1:] == (tiny_models.VOCABULARY,):
                self.size = max(self.size, each.numel())
        return result


@pytest.mark.parametrize("of", ["final_norm", "last_block", "head"])
def test_no_array_of_tokens_by_vocabulary_is_larger_than_stated(of, monkeypatch):
    model, batch = tiny_models.make("llama").float(), tiny_models.batch(40)
    monkeypatch.setattr(head, "_LARGEST", 1 << 40)
    whole = token_scores(model, *batch, of=of, sketch=Sketch(4))
    tokens = 30  # more than what is tried to find the head, and a fifth of all
    monkeypatch.setattr(head, "_LARGEST", 4 * tokens * tiny_models.VOCABULARY)
    with Largest() as largest:
        scored = token_scores(model, *batch, of=of, sketch=Sketch(4))
    assert largest.size == tokens * tiny_models.VOCABULARY
    assert whole.lengths.sum() > 4 * tokens
    np.testing.assert_allclose(scored.scores, whole.scores, atol=2e-5)


@pytest.mark.parametrize("of", ["final_norm", "last_block"])
def test_low_precision_gives_scores_near_those_of_full_precision(of):
    model, batch = tiny_models.make("llama").float(), tiny_models.batch()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    full = token_scores(model, *batch, of=of)
    low = token_scores(copy.deepcopy(model).bfloat16(), *batch, of=of)
    assert low.scores.dtype == np.float32
    assert low.scores_of == full.scores_of
    assert np.linalg.norm(low.scores - full.scores) < 0.1 * np.linalg.norm(full.scores)


def test_models_of_plain_torch_work():
    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.mix = torch.nn.Embedding(23, 8), torch.nn.Linear(8, 8)
            self.norm, self.out = torch.nn.LayerNorm(8), torch.nn.Linear(8, 23)

        def forward(self, ids, attention_mask=None):
            x = self.embedding(ids)
            return 2 * torch.tanh(self.out(self.norm(x + self.mix(x.cumsum(1)).tanh())))

    torch.manual_seed(0)
    model, batch = Plain(), tiny_models.batch()
    scored = token_scores(model, *batch, of="last_block", sketch=None)
    assert scored.scores_of == "the last block of Plain (mix, norm, out)"
    tokens, network = Tokens.of(*batch), Network(model)
    chunk = tokens.chunk(np.array([0]))
    logp = Policy().log_probs(network.logits(chunk)).gather(-1, network.targets(chunk)[..., None])[0, :, 0]
    names = ["mix.weight", "mix.bias", "norm.weight", "norm.bias", "out.weight", "out.bias"]
    for t, value in enumerate(logp):
        found = torch.autograd.grad(value, [model.get_parameter(n) for n in names], retain_graph=True)
        flat = torch.cat([each.flatten() for each in found]).numpy()
        np.testing.assert_allclose(scored.scores[0, t], flat, atol=1e-5)


def test_an_adams_scales_divide_exact_scores_and_not_sketches():
    model, batch = tiny_models.make("llama").float(), tiny_models.batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-9)
    tiny_models.log_probs(model, *batch[:2]).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    plain = token_scores(model, *batch, of="final_norm")
    scaled = token_scores(model, *batch, of="final_norm", precondition=optimizer)
    scale = optimizer.state[model.model.norm.weight]["exp_avg_sq"].div(1e-3).sqrt().add(1e-8)
    np.testing.assert_allclose(scaled.scores, plain.scores / scale.numpy(), rtol=1e-3, atol=1e-3)
    assert scaled.scores_of == "the final norm of LlamaForCausalLM, preconditioned"
    token_scores(model, *batch, of="last_block", sketch=None, precondition=optimizer)
    with pytest.raises(ValueError, match="precondition divides each entry"):
        token_scores(model, *batch, of="head", precondition=optimizer)


def test_a_model_without_such_a_part_is_told():
    class Mixing(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.out = torch.nn.Embedding(23, 8), torch.nn.Linear(8, 23)

        def forward(self, ids, attention_mask=None):
            return self.out(self.embedding(ids)).cumsum(1)  # logits of a token from other tokens' states

    class Bare(Mixing):
        def forward(self, ids, attention_mask=None):
            return self.out(self.embedding(ids).cumsum(1))

    batch = tiny_models.batch()
    with pytest.raises(ValueError, match="not its head applied to each token alone"):
        token_scores(Mixing(), *batch, of="head")
    with pytest.raises(ValueError, match="does not come out of a norm with a gain"):
        token_scores(Bare(), *batch, of="final_norm")
