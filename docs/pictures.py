"""Draw the pictures of docs/reading.md anew: ``python docs/pictures.py``."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("svg")

from matplotlib import pyplot as plt

import rlvar

HERE = Path(__file__).parent
STYLE = {"svg.fonttype": "none", "svg.hashsalt": "rlvar", "figure.facecolor": "white"}


def save(name: str, figure: plt.Figure) -> None:
    path = HERE / f"reading_{name}.svg"
    figure.savefig(path, metadata={"Date": None})
    lines = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(line.rstrip() for line in lines) + "\n", encoding="utf-8")


def two(height: float = 3.2) -> tuple[plt.Figure, list[plt.Axes]]:
    figure, axes = plt.subplots(1, 2, figsize=(10, height), layout="constrained")
    return figure, list(axes)


def draw() -> None:
    cartpole, arithmetic = rlvar.datasets.cartpole(), rlvar.datasets.arithmetic()
    report = rlvar.report(arithmetic)

    figure, (left, right) = two(2.2)
    report.comparison.plot(left)
    report.comparison.plot(right, of="noise_scale")
    save("estimators", figure)

    single, multi = (rlvar.decompose(cartpole, name) for name in ("single", "multi"))
    figure, (left, right) = two()
    single.plot(left)
    multi.plot(right)
    left.set_title("single-step")
    right.set_title("multi-step")
    save("growth", figure)

    figure, (left, right) = two(4.2)
    multi.plot(left, of="covariance")
    multi.plot(right, of="lag_profile")
    save("covariance", figure)

    figure, (left, right) = two()
    single.plot(left, of="step_share")
    multi.plot(right, of="step_share")
    left.set_title("single-step")
    right.set_title("multi-step")
    save("steps", figure)

    save("plan", report.plans["rloo"].plot().figure)


if __name__ == "__main__":
    with matplotlib.rc_context(STYLE):
        draw()
