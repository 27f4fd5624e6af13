"""Scores of all parameters: what one backward pass a token gives, whatever is around the model."""

import contextlib
import copy
import os

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")
import tiny_models  # noqa: E402
from rlvar.torch import Sketch, token_scores  # noqa: E402

SKETCH = Sketch(4, seed=7)
EXACT = 2e-6  # relative: scores are float32, and so are some norms inside


def expected(model, ids, attended, response, parameters=None, sketch=SKETCH, **options):
    """Sketch (N, T, k) of one backward pass a token."""
    parameters = dict(model.named_parameters()) if parameters is None else parameters
    result = np.zeros((len(ids), int(response.sum(1).max()), sketch.k))
    for row, t, gradients in tiny_models.one_backward_a_token(
        model, ids, attended, response, parameters, **options
    ):
        for name, gradient in gradients.items():
            directions = sketch.directions(name, gradient.shape, 0, sketch.k, dtype=gradient.dtype)
            result[row, t] += (directions * gradient).flatten(1).sum(1).numpy()
    return result


def close(found, wanted, tolerance=EXACT):
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance * np.abs(wanted).max())


@pytest.fixture(scope="module")
def llama():
    return tiny_models.make("llama")


@pytest.mark.parametrize("name", tiny_models.NAMES)
def test_a_sketch_is_that_of_one_backward_pass_a_token(name):
    model, batch = tiny_models.make(name), tiny_models.batch()
    scored = token_scores(model, *batch, sketch=SKETCH)
    close(scored.scores, expected(model, *batch))
    for row, (ids, attended, response) in enumerate(zip(*batch, strict=True)):
        kept = attended == 1
        with torch.no_grad():
            logp = tiny_models.log_probs(model, ids[None, kept], attended[None, kept])[0]
        wanted = logp[response[kept][1:] == 1]
        np.testing.assert_allclose(scored.logp[row, : len(wanted)], wanted, atol=1e-6)
    count = sum(each.numel() for each in model.parameters())
    assert scored.scores_of == f"all {count:,} parameters of {type(model).__name__}"


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_exact_coordinates_are_those_of_the_parameters_in_their_order(name):
    model, batch = tiny_models.make(name), tiny_models.batch(3)
    found = token_scores(model, *batch, sketch=None)
    assert found.sketch is None
    for row, t, gradients in tiny_models.one_backward_a_token(model, *batch):
        close(found.scores[row, t], torch.cat([each.flatten() for each in gradients.values()]).numpy())


def test_scores_of_a_sequence_with_probabilities_that_sum_to_one_have_mean_zero(llama):
    # All continuations of one token, weighed by their probabilities.
    ids = torch.cat([torch.tensor([[4, 9]]).expand(23, 2), torch.arange(23)[:, None]], dim=1)
    scored = token_scores(llama, ids, None, torch.ones(23, 1), sketch=SKETCH)
    p = np.exp(scored.logp[:, 0])
    assert p.sum() == pytest.approx(1)
    np.testing.assert_allclose(p @ scored.scores[:, 0], 0, atol=EXACT * np.abs(scored.scores).max())


def test_padding_on_either_side_changes_nothing(llama):
    ids = torch.tensor([[5, 6, 7, 8, 9], [5, 3, 4, 0, 0]])
    attended, response = (ids > 0).long(), torch.tensor([[0, 0, 1, 1, 1], [0, 1, 1, 0, 0]])
    right = token_scores(llama, ids, attended, response, sketch=SKETCH)
    rolled = [torch.stack([each[0], each[1].roll(2)]) for each in (ids, attended, response)]
    left = token_scores(llama, *rolled, sketch=SKETCH)
    np.testing.assert_array_equal(right.scores, left.scores)
    np.testing.assert_array_equal(right.logp, left.logp)


def test_gaps_of_several_turns_are_skipped_but_conditioned_on(llama):
    ids = torch.tensor([[5, 6, 7, 8, 9, 10, 11]])
    ids = torch.cat([ids, ids.flip(1)])
    response = torch.tensor([[0, 1, 1, 0, 0, 1, 0]] * 2)
    scored = token_scores(llama, ids, None, response, sketch=SKETCH)
    assert scored.lengths.tolist() == [3, 3]
    close(scored.scores, expected(llama, ids, torch.ones_like(ids), response))
    rewards = np.arange(14.0).reshape(2, 7)
    np.testing.assert_array_equal(scored.rollouts(rewards).rewards, rewards[:, [1, 2, 5]])


def test_a_response_mask_may_be_that_of_the_last_columns(llama):
    ids, attended, response = tiny_models.batch()
    whole = token_scores(llama, ids, attended, response, sketch=SKETCH)
    part = token_scores(llama, ids, attended, response[:, 4:], sketch=SKETCH)
    np.testing.assert_array_equal(whole.scores, part.scores)
    behavior = torch.full(response[:, 4:].shape, -1.5)
    assert part.rollouts(np.ones(5), behavior_logp=behavior).behavior_logp[0, 0] == -1.5


@pytest.mark.parametrize("name", ["llama", "qwen3"])  # with embeddings of their own, and tied to the head
def test_the_padding_token_is_no_exception(name):
    """Its row of the embedding gets no gradient from a backward pass, but as an output where it is tied."""
    model, (ids, attended, response) = tiny_models.make(name), tiny_models.batch()
    assert model.get_input_embeddings().padding_idx == 0
    ids[:, 5] = 0
    scored = token_scores(model, ids, attended, response, sketch=SKETCH)
    close(scored.scores, expected(model, ids, attended, response))


def test_memory_changes_chunks_and_nothing_else(llama):
    batch = tiny_models.batch()
    whole = token_scores(llama, *batch, sketch=SKETCH)
    pieces = token_scores(llama, *batch, sketch=SKETCH, memory=1)
    close(pieces.scores, whole.scores)


WARPED = {
    "temperature": ({"temperature": 0.7}, lambda z: (z / 0.7).log_softmax(-1)),
    "top_k": ({"top_k": 20}, lambda z: _kept(z, z >= z.sort(-1).values[..., -20, None])),
    "min_p": (
        {"min_p": 0.005},
        lambda z: _kept(z, z.softmax(-1) >= 0.005 * z.softmax(-1).amax(-1, keepdim=True)),
    ),
    "top_p": ({"top_p": 0.999}, lambda z: _kept(z, _nucleus(z, 0.999))),
}


def _kept(z, kept):
    return z.masked_fill(~kept, -torch.inf).log_softmax(-1)


def _nucleus(z, p):
    # The fewest tokens whose probabilities reach p.
    probabilities, order = z.softmax(-1).sort(-1, descending=True)
    before = probabilities.cumsum(-1) - probabilities
    return torch.zeros_like(z, dtype=torch.bool).scatter(-1, order, before < p)


@pytest.mark.parametrize("name", WARPED)
def test_the_policy_is_the_warped_one(name, llama):
    options, policy = WARPED[name]
    batch = tiny_models.batch()
    scored = token_scores(llama, *batch, sketch=SKETCH, **options)
    wanted = expected(llama, *batch, policy=policy)
    wanted[np.isneginf(scored.logp)] = 0.0
    close(scored.scores, wanted)


def test_a_token_that_warping_removes_has_log_probability_minus_infinity_and_no_score(llama):
    batch = tiny_models.batch()
    scored = token_scores(llama, *batch, sketch=SKETCH, top_k=8)
    removed = np.isneginf(scored.logp)
    live = np.arange(removed.shape[1]) < scored.lengths[:, None]
    assert 0 < removed.sum() < live.sum()
    assert (scored.scores[removed] == 0).all()
    assert (np.abs(scored.scores[live & ~removed]).max(axis=1) > 0).all()
    assert np.isfinite(scored.log_sum_squares[live]).all()
    scored.rollouts(np.ones(5), groups=[0, 0, 1, 1, 1])


def test_log_sum_squares_are_those_of_all_probabilities(llama):
    ids, attended, response = tiny_models.batch()
    scored = token_scores(llama, ids, attended, response, sketch=SKETCH, temperature=2.0)
    with torch.no_grad():
        p = (llama(input_ids=ids[3:4], attention_mask=attended[3:4]).logits / 2).softmax(-1)
    wanted = p.square().sum(-1)[0, :-1][response[3, 1:] == 1]
    np.testing.assert_allclose(np.exp(scored.log_sum_squares[3, : len(wanted)]), wanted, rtol=1e-5)
    squares = scored.rollouts(np.ones(5)).score_squares
    np.testing.assert_allclose(squares[3, 0], 1 - 2 * np.exp(scored.logp[3, 0]) + wanted[0], rtol=1e-5)


def test_a_model_in_bfloat16_gives_finite_scores_in_float32_near_those_of_float32():
    batch = tiny_models.batch()
    half = token_scores(tiny_models.make("llama").to(torch.bfloat16), *batch, sketch=SKETCH)
    full = token_scores(tiny_models.make("llama").to(torch.bfloat16).float(), *batch, sketch=SKETCH)
    assert half.scores.dtype == np.float32
    close(half.scores, full.scores, 0.1)


def test_grouped_experts_are_put_aside_and_back():
    model, batch = tiny_models.make("moe").float(), tiny_models.batch()
    wanted = token_scores(model, *batch, sketch=SKETCH).scores
    model.set_experts_implementation("grouped_mm")
    close(token_scores(model, *batch, sketch=SKETCH).scores, wanted, 1e-5)
    assert model.config._experts_implementation == "grouped_mm"


@contextlib.contextmanager
def in_one_process():
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29517"}
    torch.distributed.init_process_group("gloo", rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


def test_wrappers_around_the_model_change_nothing(llama):
    batch = tiny_models.batch()
    wanted = token_scores(llama, *batch, sketch=SKETCH)
    for wrapped in (torch.nn.DataParallel(llama), torch.compile(llama)):
        found = token_scores(wrapped, *batch, sketch=SKETCH)
        np.testing.assert_array_equal(found.scores, wanted.scores)
        assert found.scores_of == wanted.scores_of
    with in_one_process():
        ddp = torch.nn.parallel.DistributedDataParallel(copy.deepcopy(llama))
        np.testing.assert_array_equal(token_scores(ddp, *batch, sketch=SKETCH).scores, wanted.scores)


def test_sharded_models_are_refused(llama):
    from torch.distributed.fsdp import fully_shard

    with in_one_process(), pytest.raises(ValueError, match="sharded"):
        token_scores(fully_shard(copy.deepcopy(llama)), *tiny_models.batch())


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft's
def test_of_an_adapter_only_its_parameters_count():
    peft = pytest.importorskip("peft", reason="needs peft")
    config = peft.LoraConfig(
        r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False
    )
    model = peft.get_peft_model(tiny_models.make("llama"), config).double()
    batch = tiny_models.batch()
    trained = {name: each for name, each in model.named_parameters() if each.requires_grad}
    scored = token_scores(model, *batch, sketch=SKETCH)
    close(scored.scores, expected(model, *batch, trained))
    count = sum(each.numel() for each in trained.values())
    assert scored.scores_of == f"all {count:,} trainable parameters of LlamaForCausalLM"


def test_precondition_divides_by_what_adam_divides_by(llama):
    model, batch = copy.deepcopy(llama), tiny_models.batch()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for _ in range(3):
        tiny_models.log_probs(model, *batch[:2]).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    found = token_scores(model, *batch, sketch=None, precondition=optimizer)
    plain = token_scores(model, *batch, sketch=None)
    scales = []
    for parameter in model.parameters():
        state = optimizer.state[parameter]
        scales.append(((state["exp_avg_sq"] / (1 - 0.999**3)).sqrt() + 1e-8).flatten())
    close(found.scores, plain.scores / torch.cat(scales).numpy(), 1e-5)
    assert found.scores_of.endswith("preconditioned")


class Plain(torch.nn.Module):
    """No transformers model: token, and the one before it, to logits."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(9, 9)

    def forward(self, input_ids):
        return self.table(input_ids)


def test_any_module_from_tokens_to_logits_will_do():
    torch.manual_seed(0)
    model, ids = Plain(), torch.randint(9, (4, 5))
    scored = token_scores(model, ids, None, torch.ones(4, 4), sketch=None)
    onehot = torch.nn.functional.one_hot(ids[:, 1:], 9) - model(ids[:, :-1]).softmax(-1)
    wanted = torch.zeros(4, 4, 9, 9)
    wanted.scatter_(2, ids[:, :-1, None, None].expand(4, 4, 1, 9), onehot[:, :, None])
    close(scored.scores, wanted.flatten(2).detach().numpy())


class InPlace(Plain):
    """Writes into an array of its own, which torch.func.vmap refuses."""

    def forward(self, input_ids):
        result = torch.zeros(*input_ids.shape, 9)
        result[:] = self.table(input_ids)
        return result


def test_what_directions_cannot_do_together_they_do_one_by_one():
    model, ids = InPlace(), torch.randint(9, (4, 5))
    plain = Plain()
    plain.load_state_dict(model.state_dict())
    found, wanted = (
        token_scores(each, ids, None, torch.ones(4, 4), sketch=SKETCH) for each in (model, plain)
    )
    close(found.scores, wanted.scores)


def test_a_model_without_forward_mode_is_told_what_else_there_is():
    import transformers as hf

    model = hf.BloomForCausalLM(hf.BloomConfig(vocab_size=23, hidden_size=8, n_layer=1, n_head=1))
    with pytest.raises(
        ValueError, match="forward-mode derivatives, which an operation of BloomForCausalLM lacks"
    ):
        token_scores(model, *tiny_models.batch(), sketch=SKETCH)


def state_of(model):
    return (
        [module.training for module in model.modules()],
        [(each.requires_grad, each.grad) for each in model.parameters()],
        model.config._attn_implementation,
    )


@pytest.mark.parametrize("sketch", [SKETCH, None])
def test_the_model_is_left_as_it_was_also_after_an_error(sketch):
    model = tiny_models.make("llama")
    model.train()
    model.lm_head.eval()
    model.model.embed_tokens.weight.requires_grad_(False)
    before, batch = state_of(model), tiny_models.batch()
    token_scores(model, *batch, sketch=sketch)
    assert state_of(model) == before

    def interrupted(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        token_scores(model, *batch, sketch=sketch, progress=interrupted)
    assert state_of(model) == before


def test_progress_reaches_the_whole(llama):
    calls = []
    token_scores(llama, *tiny_models.batch(), sketch=SKETCH, progress=lambda *each: calls.append(each))
    assert calls[-1] == (20, 20)


def test_rows_without_a_response_are_rollouts_of_no_steps(llama):
    ids, attended, response = tiny_models.batch()
    response[2] = 0
    scored = token_scores(llama, ids, attended, response, sketch=SKETCH)
    assert scored.lengths[2] == 0
    assert (scored.scores[2] == 0).all()
    assert scored.rollouts(np.ones(5)).live_steps[2] == 0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda i, a, r: (i.float() + 0.5, a, r), TypeError, "input_ids must be integers"),
        (lambda i, a, r: (i[0], a, r), ValueError, "input_ids must have shape"),
        (
            lambda i, a, r: (i + 20, a, r),
            ValueError,
            "input_ids has token 42; the model's tokens are 0 to 22",
        ),
        (lambda i, a, r: (i - 9, a, r), ValueError, "input_ids has token -"),
        (lambda i, a, r: (i, a[:, 1:], r), ValueError, "attention_mask must have the shape"),
        (lambda i, a, r: (i, a, r[:3]), ValueError, "response_mask must have shape"),
        (lambda i, a, r: (i, a, r + 0.5), ValueError, "response_mask must be True or False"),
        (lambda i, a, r: (i, a, r * 0), ValueError, "response_mask marks no token"),
        (lambda i, a, r: (i, a, r + 1 - r), ValueError, "attention_mask hides response token"),
        (lambda i, a, r: (i, None, r + 1 - r), ValueError, "marks the first token"),
    ],
)
def test_what_does_not_fit_is_named(llama, change, error, message):
    with pytest.raises(error, match=message):
        token_scores(llama, *change(*tiny_models.batch()), sketch=SKETCH)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"of": "everything"}, ValueError, "of must be"),
        ({"sketch": 64}, TypeError, "sketch must be a Sketch"),
        ({"temperature": 0}, ValueError, "temperature"),
        ({"top_p": 1.5}, ValueError, "top_p"),
        ({"memory": 0}, ValueError, "memory"),
        ({"precondition": "adam"}, TypeError, "precondition"),
    ],
)
def test_options_out_of_range_are_named(llama, options, error, message):
    with pytest.raises(error, match=message):
        token_scores(llama, *tiny_models.batch(), **options)


def test_an_encoder_decoder_is_refused():
    import transformers as hf

    config = hf.T5Config(vocab_size=23, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
    with pytest.raises(ValueError, match="encoder-decoder"):
        token_scores(hf.T5ForConditionalGeneration(config), *tiny_models.batch())
