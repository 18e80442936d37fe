"""The table that a run prints, and that the README shows."""

from __future__ import annotations

from typing import Any

from bench.workload import KINDS


def table(result: dict[str, Any]) -> list[str]:
    """The lines of the table."""
    machine, precision = result["machine"], result["precision"]
    lines = [
        "",
        f"ViT-B/32 on {machine['processor']}, {machine['processors']} processors; "
        f"{result['seconds'] / 60:.0f} minutes; matrix products in {precision}: "
        f"{result['matrix_products'][precision] / 1e12:.2f} TFLOP/s",
    ]
    for name in result["ours"]:
        lines += ["", *_rates(result, name), *_others(result, name)]
    lines += ["", "rows a second of others  " + "".join(f"{_title(kind):>14}" for kind in KINDS)]
    for peer, rates in {
        "the guide's script": _medians(result["baseline"]),
        **result["peers"],
    }.items():
        lines.append(f"{peer:<25}" + "".join(f"{rates[kind]:>14,.1f}" for kind in KINDS))
    lines += ["", "demo model, growing        seconds   us a row   memory"]
    for each in (*result["growth"]["rows"], *result["growth"]["workers"]):
        lines.append(
            f"{each['rows']:>9,} rows, {each['workers']} workers{each['seconds']:>9.3f}"
            f"{1e6 * each['seconds'] / each['rows']:>11,.0f}{each['bytes'] / 2**20:>6,.0f} MiB"
        )
    return lines


def _rates(result: dict[str, Any], name: str) -> list[str]:
    ours, baseline = result["ours"][name], result["baseline"]
    # int8's products are compared with those of the precision that it rounds from.
    products = result["matrix_products"]["fp32" if name == "fp32" else result["precision"]]
    lines = [
        f"{'rows a second, ' + name:<25}{'ours':>10}{'spread':>18}{'guide':>8}{'ratio':>8}"
        f"{'forward':>10}{'share':>7}{'of matrix products':>20}"
    ]
    for kind in KINDS:
        mine, theirs = ours[kind], baseline[kind]["median"]
        spread = f"{mine['least']:,.1f}-{mine['most']:,.1f}"
        lines.append(
            f"{_title(kind):<25}{mine['median']:>10,.1f}{spread:>18}{theirs:>8,.1f}"
            f"{mine['median'] / theirs:>7.1f}x{mine['forward']:>10,.1f}{mine['share']:>7.0%}"
            f"{mine['forward_flops'] / products:>20.0%}"
        )
    return lines


def _others(result: dict[str, Any], name: str) -> list[str]:
    ours, baseline = result["ours"][name], result["baseline"]
    first = result["first_calls"][name], result["first_calls"]["baseline"]
    warm = ours["warm_seconds"]["p50"], baseline["warm_seconds"]["p50"]
    load = ours["under_load"]
    memory = ours["memory"], baseline["memory"]
    return [
        f"first call, all down     {first[0]:8.2f} s, guide {first[1]:.2f} s "
        f"(1/{first[1] / first[0]:.1f})",
        f"one text, warm           {warm[0] * 1e3:8.1f} ms, guide {warm[1] * 1e3:.1f} ms "
        f"(1/{warm[1] / warm[0]:.1f})",
        f"a search under load      {load['p95'] * 1e3:8.1f} ms p95, {load['p50'] * 1e3:.1f} ms "
        f"p50: {load['p95'] / warm[0]:.1f} x and {load['p50'] / warm[0]:.1f} x the idle p50",
        f"memory                   {memory[0]['bytes'] / 2**20:8,.0f} MiB with "
        f"{memory[0]['workers']} workers; guide "
        f"{memory[1]['bytes'] / memory[1]['workers'] / 2**20:,.0f} MiB a worker",
    ]


def _medians(rates: dict[str, Any]) -> dict[str, float]:
    return {kind: rates[kind]["median"] for kind in KINDS}


def _title(kind: str) -> str:
    return kind.replace("_", " ")
