"""What the skill web-artifacts-builder bundles in a sandbox, in JupyterLab's outputs panel."""

from __future__ import annotations

import shutil

import pytest

from ..sweeps import needs_all
from .conftest import IN_SANDBOXES
from .lab import LabPage
from .test_outputs import choose, page_has, run_command

pytestmark = [
    *IN_SANDBOXES,
    pytest.mark.skipif(shutil.which("esbuild") is None, reason="no esbuild: apt-get install it"),
]
BUNDLE = """
import os, sys
sys.path.insert(0, "/mnt/skills/examples/web-artifacts-builder/scripts")
from bundle import bundle, make
folder = make("/tmp/sales")
chart = '''import { Bar, BarChart } from "recharts";
import data from "./data.json";
export default function App() {
  return <main><p id="seen">{data[0].name}</p><BarChart width={200} height={100} data={data}>
    <Bar dataKey="value" isAnimationActive={false} /></BarChart></main>;
}'''
for name in ("sales.html", "sales.jsx"):
    bundle(folder, "outputs/" + name)
(folder / "App.tsx").write_text(chart)
bundle(folder, "outputs/chart.jsx")
"""


@needs_all
def test_bundled_pages_are_shown_in_the_outputs_panel(lab: LabPage, display_name: str) -> None:
    lab.pick_kernel(display_name)
    lab.wait_for_kernel(display_name)
    lab.run(BUNDLE)
    run_command(lab, "Show the Outputs of This Kernel")
    for name, css, text in (
        ("sales.html", "main p", "May: 1,250 EUR"),
        ("sales.jsx", "main p", "May: 1,250 EUR"),
        ("chart.jsx", "#seen", "May"),
        ("chart.jsx", ".recharts-bar-rectangle", ""),
    ):
        choose(lab, name)
        page_has(lab, css, text)
        lab.screenshot(f"bundle-{name}")
