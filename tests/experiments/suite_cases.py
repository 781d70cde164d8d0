"""A suite of two tiny scenarios, on eight instances and on four, ranked by a latency and by a share."""

from pathlib import Path

SCENARIO = """# @package _global_
defaults:
  - override /cluster: {cluster}
  - override /workload: synthetic
  - _self_
scenario:
  name: tiny/{name}
  failure_s: 120.0
  rank_by: {rank_by}
  windows: 6
  beyond_windows: refuse
  parts:
    train: {{load: {load}, available: {available}, num_requests: null, workload: {{}}}}
    validate: {{load: null, available: null, num_requests: null, workload: {{}}}}
    test: {{load: null, available: null, num_requests: null, workload: {{}}}}
env: {{load: 0.9, num_requests: 60}}
slo: {{ttft_s: 0.5, ttft_s_per_1k_prompt_tokens: 0.0625, tpot_s: 0.05}}
"""
EIGHT = {"name": "eight", "cluster": "rtxpro6000_x4_rtx4090_x4", "rank_by": "e2e_charged_s.mean"}
FOUR = {"name": "four", "cluster": "rtxpro6000_qwen3_32b_tp2_x4", "rank_by": "slo_attainment"}
POLICIES = "policies=[least_inflight,random]"


def write_suite(folder: Path) -> list[str]:
    """Write the suite into ``folder/conf`` and return the arguments that let a command find it there."""
    scenarios = folder / "conf" / "scenario" / "tiny"
    scenarios.mkdir(parents=True)
    for values, load, available in ((EIGHT, "[0.6, 1.1]", "[6, 8]"), (FOUR, "[0.5, 0.9]", "null")):
        text = SCENARIO.format(**values, load=load, available=available)
        (scenarios / f"{values['name']}.yaml").write_text(text)
    suites = folder / "conf" / "suite"
    suites.mkdir()
    (suites / "tiny.yaml").write_text("name: tiny\nscenarios: [tiny/eight, tiny/four]\n")
    (suites / "lone.yaml").write_text("name: lone\nscenarios: [tiny/eight]\n")
    return ["--config-dir", "conf"]
