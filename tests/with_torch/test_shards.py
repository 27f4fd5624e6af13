"""Blocks of a scoring job on Ray's workers: the same bits, whatever befalls them."""

import contextlib
import os
import signal
import socket
import sys
import time

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("transformers", reason="needs transformers")
ray = pytest.importorskip("ray", reason="needs ray")
import rlvar  # noqa: E402
import tiny_models  # noqa: E402
from rlvar.cli import main  # noqa: E402
from rlvar.torch import Sketch, score_recorded, scoring, shards  # noqa: E402


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A cluster on this machine, for all that takes one without an address."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_AUTH_TOKEN", "0" * 64)  # else it writes one to the home directory
        before = signal.getsignal(signal.SIGTERM)
        with shards.connected("local"):
            assert signal.getsignal(signal.SIGTERM) is before
            yield ray
        assert not ray.is_initialized()


@pytest.fixture
def recorded():
    rng = np.random.default_rng(0)
    ids = [rng.integers(3, tiny_models.VOCABULARY, 3 + n % 4) for n in range(12)]
    masks = [np.arange(len(each)) >= 2 for each in ids]
    return rlvar.RecordedRollouts("mine", "mine", rewards=rng.random(12), ids=ids, masks=masks)


def mortal(flag):
    """Return a model that once ends its process, if that is not this one; its class travels by value."""
    here, vocabulary = os.getpid(), tiny_models.VOCABULARY  # not the module: workers lack it

    class Mortal(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.nn.Embedding(vocabulary, 8)
            self.head = torch.nn.Linear(8, vocabulary)
            self.head.weight = self.inner.weight

        def forward(self, input_ids, attention_mask=None):
            if os.getpid() != here:
                with contextlib.suppress(FileExistsError):  # the first worker to come here
                    os.mkdir(flag)
                    os._exit(9)
            return self.head(self.inner(input_ids).cumsum(1).tanh())

    return Mortal()


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_workers_give_the_bits_of_one_process_though_one_dies_and_the_run_is_stopped(
    cluster, recorded, tmp_path, monkeypatch
):
    monkeypatch.setattr(scoring, "_ROWS", 2)
    model = mortal(str(tmp_path / "died"))
    before = {name: each.clone() for name, each in model.state_dict().items()}
    score_recorded(model, recorded, tmp_path / "one", sketch=Sketch(3))
    assert not (tmp_path / "died").exists()

    def stop(done, total):
        if done >= 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_recorded(model, recorded, tmp_path / "ray", sketch=Sketch(3), ray=True, progress=stop)
    assert (tmp_path / "died").exists()
    everything = ray.cluster_resources()["CPU"]
    while ray.available_resources().get("CPU", 0) < everything:  # until the workers have gone
        time.sleep(0.05)
    seen = []
    score_recorded(
        model, recorded, tmp_path / "ray", sketch=Sketch(3), progress=lambda done, _: seen.append(done)
    )
    assert seen[0] == 8
    assert contents(tmp_path / "one") == contents(tmp_path / "ray")
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())


def test_what_a_worker_raises_is_one_line_of_the_command(cluster, tmp_path, capfd):
    tiny_models.make("llama").float().save_pretrained(tmp_path / "model")
    data = tmp_path / "data.jsonl"
    data.write_text('{"prompt_ids": [1], "response_ids": [99], "reward": 1}\n' * 2)
    command = ["score", str(tmp_path / "model"), str(data), "--out", str(tmp_path / "out"), "--ray"]
    capfd.readouterr()
    assert main(command) == 2
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("rlvar: input_ids has token 99")
    assert not (tmp_path / "out").exists()
    assert main([*command, "--cpus", "4096"]) == 2
    assert "no machine of Ray's cluster has 4096 CPUs for a worker" in capfd.readouterr().err
    assert main([*command, "--device", "cuda:1"]) == 2
    assert "device must be cpu or cuda on Ray" in capfd.readouterr().err
    assert ray.is_initialized()


def test_a_process_is_connected_to_one_cluster(cluster, recorded, tmp_path):
    with pytest.raises(
        ValueError, match=r"connected to Ray at .* already, so it cannot connect to 127\.0\.0\.1:1"
    ):
        score_recorded(mortal("/"), recorded, tmp_path / "out", ray="127.0.0.1:1")


def test_parameters_travel_apart_from_their_model_and_stay_tied():
    model = tiny_models.make("qwen3").bfloat16()
    model.lm_head.weight.requires_grad_(False)
    hollow, parameters = shards._apart(model)
    assert all(each.numel() == 0 for each in hollow.parameters())
    assert all(each.numel() for each in model.parameters())
    for array, _ in parameters.values():
        array.flags.writeable = False  # as in Ray's store
    again = shards._together(hollow, parameters)
    assert again.lm_head.weight is again.model.embed_tokens.weight
    for name, each in model.named_parameters():
        other = again.get_parameter(name)
        assert torch.equal(each, other)
        assert each.requires_grad == other.requires_grad


@pytest.mark.parametrize("where", ["address", "environment", "file"])
def test_an_address_where_nobody_answers_is_told_at_once(tmp_path, monkeypatch, recorded, where):
    with socket.socket() as taken:  # and does not listen
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        if where == "environment":
            monkeypatch.setenv("RAY_ADDRESS", address)
        elif where == "file":  # of a cluster that was not stopped as it should be
            monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
            (tmp_path / "ray").mkdir()
            (tmp_path / "ray" / "ray_current_cluster").write_text(address)
        monkeypatch.setattr(ray, "is_initialized", lambda: False)
        with pytest.raises(ConnectionError, match=f"Ray at {address}: no answer"):
            score_recorded(
                mortal("/"), recorded, tmp_path / "out", ray=address if where == "address" else True
            )
    assert not (tmp_path / "out").exists()


def test_without_ray_the_command_to_install_it_is_told(monkeypatch, recorded, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'rlvar\[ray\]'"):
        score_recorded(mortal("/"), recorded, tmp_path / "out", ray=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--ray", "model", "data"],
            "'model' is no address (host:port, auto or local); write --ray alone last",
        ),
        (["model", "data", "--ray", "127.0.0.1"], "'127.0.0.1' is no address"),
    ],
)
def test_what_is_no_address_is_told(capsys, options, message):
    with pytest.raises(SystemExit):
        main(["score", *options, "--out", "out"])
    assert message in " ".join(capsys.readouterr().err.split())
