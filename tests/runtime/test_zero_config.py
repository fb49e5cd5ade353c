from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from twostage.data.schema import InputError
from twostage.runtime.zero_config import FILE, USE, asked_for, hidden_from_accelerate, read_config

FILES = Path(__file__).parents[2] / "launch" / "deepspeed"
PARAMETERS = {"conv": 1001, "fc": 5000, "bias": 10}


def filled(path: Path, **facts: Any) -> dict[str, Any]:
    given = {"batch_size": 96, "num_processes": 4, "pieces": 1, "precision": "fp32", "parameters": PARAMETERS}
    return read_config(path, **{**given, **facts})


def written(tmp_path: Path, **changes: Any) -> Path:
    """zero1.json with other settings; those of sections are written `section__name`."""
    config = json.loads((FILES / "zero1.json").read_bytes())
    for name, value in changes.items():
        section, _, key = name.rpartition("__")
        (config[section] if section else config)[key] = value
    path = tmp_path / "zero.json"
    path.write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("stage", [1, 2])
def test_the_files_are_filled_in(stage: int) -> None:
    config = filled(FILES / f"zero{stage}.json", pieces=3, precision="bf16")
    assert '"auto"' not in json.dumps(config)
    assert config["zero_optimization"]["stage"] == stage
    assert config["train_micro_batch_size_per_gpu"] == 8 and config["gradient_accumulation_steps"] == 3
    assert config["gradient_clipping"] == 0.0, "DeepSpeed would clip at 1.0"
    assert config["torch_autocast"] == {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    # no bucket is smaller than the largest parameter, and both are even
    assert config["zero_optimization"]["reduce_bucket_size"] == 5000
    assert config["zero_optimization"]["allgather_bucket_size"] == 6012
    large = filled(FILES / f"zero{stage}.json", parameters={"fc": 2 * 10**9})["zero_optimization"]
    assert large["reduce_bucket_size"] == large["allgather_bucket_size"] == 5 * 10**8


def test_fp32_and_sizes_of_ones_own(tmp_path: Path) -> None:
    path = written(tmp_path, zero_optimization__reduce_bucket_size=1000, steps_per_print=100)
    config = filled(path)
    assert config["torch_autocast"] == {"enabled": False, "lower_precision_safe_modules": []}
    assert config["zero_optimization"]["reduce_bucket_size"] == 1000 and config["steps_per_print"] == 100
    assert config["train_micro_batch_size_per_gpu"] == 24


@pytest.mark.parametrize(
    ("changes", "facts", "message"),
    [
        ({"optimizer": {"type": "Adam"}}, {}, "remove optimizer: the run's configuration says which"),
        ({"bf16": {"enabled": True}}, {}, "remove bf16: it turns BatchNorm"),
        ({"gradient_clipping": 1.0}, {}, r'gradient_clipping is 1\.0, but the run.* makes it 0\.0 .*write "auto"'),
        ({"train_micro_batch_size_per_gpu": 8}, {}, r"is 8, but the run's configuration makes it 24"),
        ({"torch_autocast__enabled": True}, {}, "enabled is true, but .* false .runtime.precision: fp32"),
        ({"zero_optimization__stage": 3}, {}, "stage is 3; it must be 1 or 2"),
        ({"zero_optimization__stage": "auto"}, {}, 'stage is "auto"; it must be 1 or 2'),
        ({"zero_optimization__overlap_comm": "auto"}, {}, r'"auto" is not filled in for zero_opt.*overlap_comm'),
        ({"zero_optimization__reduce_bucket_size": 5e8}, {}, "reduce_bucket_size is 500000000.0; it must be an even"),
        ({"zero_optimization__offload_optimizer": {}}, {}, r"remove zero_optimization\.offload_optimizer"),
        ({"zero_optimisation": {}}, {}, "unknown setting zero_optimisation; did you mean 'zero_optimization'"),
        ({}, {"precision": "fp16"}, "fp16 is not available with DeepSpeed; use bf16"),
        ({}, {"batch_size": 98}, "98 does not divide among 4 processes"),
    ],
)
def test_what_cannot_be_is_refused(
    tmp_path: Path, changes: dict[str, Any], facts: dict[str, Any], message: str
) -> None:
    path = written(tmp_path, **changes)
    with pytest.raises(InputError, match=message):
        filled(path, **facts)


@pytest.mark.parametrize(
    ("content", "message"), [(None, "cannot be read: No such file"), ("{", "not JSON"), ("[]", "no section zero_opt")]
)
def test_files_that_are_none(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "zero.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message):
        filled(path)


def test_what_the_launcher_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(USE, raising=False)
    assert asked_for() is None
    monkeypatch.setenv(USE, "true")
    monkeypatch.setenv(FILE, "none")        # what accelerate writes where there is none
    with pytest.raises(InputError, match=r"set deepspeed_config\.deepspeed_config_file"):
        asked_for()
    monkeypatch.setenv(FILE, "launch/deepspeed/zero1.json")
    with hidden_from_accelerate():
        assert asked_for() is None
    assert asked_for() == Path("launch/deepspeed/zero1.json")
