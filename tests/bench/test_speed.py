"""What `garzone bench speed` measures, on a tiny model of random weights, with a stand-in for the peer."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from garzone.bench import speed, speed_plot, synthetic
from garzone.cli.bench import bench
from garzone.core.errors import InvalidReference, UnavailableError
from garzone.engine.gguf import GGUFFile

# answers like llama_cpp_subject.py, at a speed that is known
PEER = """
import json, sys
print(json.dumps({"ready": "stand-in"}), flush=True)
for line in sys.stdin:
    operation, *rest = json.loads(line)
    answers = {"prefill": 1000.0, "decode": [500.0] * rest[-1] if rest else None, "memory": 10**12}
    print(json.dumps(answers[operation]), flush=True)
"""


def test_both_sides_take_turns_and_goals_are_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = synthetic.fetch("synthetic:tiny", tmp_path)
    stand_in = tmp_path / "peer.py"
    stand_in.write_text(PEER)
    ours = next(speed.Comparison(path, num_ctx=128).sides())
    monkeypatch.setattr(
        speed.Comparison, "sides", lambda _: iter([ours, ("llama.cpp fa=0", [sys.executable, str(stand_in)])])
    )
    report = speed.measure(speed.Comparison(path, num_ctx=128, prefill_tokens=20, positions=(30,), rounds=1))
    measures = {measure.name: measure for measure in report.measures}
    assert measures["prefill 20"].values["llama.cpp fa=0"] == pytest.approx(0.02)
    assert measures["decode at 30"].ratio["llama.cpp fa=0"] > 2.5
    assert measures["decode at 30"].met
    assert measures["prefill 20"].met
    assert measures["start to first token, warm kernel cache"].values["garzone"] > 0
    assert 1 < measures["bytes moved over least, at 30"].values["garzone"] < 2
    assert measures["peak memory"].values["llama.cpp fa=0"] == pytest.approx(1e6)
    assert measures["peak memory"].met
    assert json.loads(json.dumps(report.to_json()))["model"] == "tiny.gguf"


def test_a_synthetic_model_has_the_types_of_a_q4_k_m_file(tmp_path: Path) -> None:
    path = synthetic.fetch("synthetic:tiny", tmp_path)
    with GGUFFile.open(path) as file:
        types = {name: info.ggml_type.name for name, info in file.tensors.items()}
    assert types["output.weight"] == "Q6_K"
    assert types["blk.0.attn_q.weight"] == "Q4_K"
    assert {types["blk.0.ffn_down.weight"], types["blk.1.ffn_down.weight"]} == {"Q4_K", "Q6_K"}
    assert synthetic.fetch("synthetic:tiny", tmp_path) == path
    with pytest.raises(InvalidReference, match=r"qwen2\.5-coder-7b"):
        synthetic.fetch("synthetic:gpt", tmp_path)


def test_an_interpreter_without_the_peer_is_named_with_what_to_do() -> None:
    with pytest.raises(UnavailableError, match="pip install --no-binary llama-cpp-python"):
        speed.check_peer(sys.executable)
    with pytest.raises(UnavailableError, match="cannot be run"):
        speed.check_peer("/nonexistent/python")


def test_a_context_that_is_too_small_is_wrong_usage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GARZONE_HOME", str(tmp_path))
    done = CliRunner().invoke(bench, ["speed", "synthetic:tiny", "--num-ctx", "128"])
    assert done.exit_code == 2
    assert "1032 tokens are needed" in done.output


def test_a_plot_is_drawn_or_said_to_need_the_extra_before_anything_is_measured(tmp_path: Path) -> None:
    if importlib.util.find_spec("matplotlib"):
        rate = speed.Measure("decode at 50", "tok/s", {"garzone": 339.0, "llama.cpp": 114.0}, {"llama.cpp": 2.97})
        memory = speed.Measure("peak memory", "MB", {"garzone": 265.0})
        speed_plot.draw(speed.SpeedReport("m", 1, "x86_64", 2, 1, 0.0, (rate, memory)), tmp_path / "speed.png")
        assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")
    else:
        asked = ["speed", "no such model", "--plot", "--out", str(tmp_path / "out")]
        done = CliRunner().invoke(bench, asked)
        assert isinstance(done.exception, UnavailableError), "the model was looked for first"
        assert "garzone[bench]" in str(done.exception)
        assert not (tmp_path / "out").exists()
