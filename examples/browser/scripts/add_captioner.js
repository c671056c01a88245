/** Exports the captioner that comes with nic_hf to public/model/, unless there is a captioner. */

import { spawnSync } from "node:child_process";
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";

const path = (relative) => fileURLToPath(new URL(relative, import.meta.url));
const model = path("../public/model");

if (!existsSync(`${model}/nic_onnx.json`)) process.exitCode = add();

/** Returns the exit code of `nic export onnx`, which says on its own what went wrong. */
function add() {
  console.log("public/model has no captioner: exporting the one that comes with nic_hf (half a minute)");
  for (const [program, ...words] of commands()) {
    const { error, status } = spawnSync(program, [...words, "export", "onnx", model, "--int8"], { stdio: "inherit" });
    if (!error) return status ?? 1;
  }
  console.error('nic_hf is not found: pip install "nic_hf[onnx]", or set NIC_HF_PYTHON to the Python that has it');
  return 1;
}

/** The Python of NIC_HF_PYTHON if it is set, else `nic` on the path or in the clone's .venv. */
function commands() {
  const python = process.env.NIC_HF_PYTHON;
  if (python) return [[python, "-m", "nic_hf"]];
  return [["nic"], [path("../../../.venv/bin/nic")], [path("../../../.venv/Scripts/nic.exe")]];
}
