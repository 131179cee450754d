"""Quantum nuclei in water: kinetic energy of H and O, and g_OH(r), for several numbers of beads.

    python examples/ipi/pimd.py --beads 1 16 --duration 2

For each number of beads a folder with i-PI's input.xml, which can be changed and run by hand, and continued with
`i-pi RESTART`. i-PI runs the model inside, all beads in one batch. One bead is classical dynamics.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from ase.io import iread, read, write

from dpsim.analysis.statistics import Estimate, format_value, mean_with_error
from dpsim.analysis.structure import RDF, rdf, save_rdf
from dpsim.calculators.ipi_driver import PES_PATH
from dpsim.models.checkpoint import find_model
from dpsim.trajectory import TrajectoryWriter, write_topology
from dpsim.units import BOLTZMANN_EV_PER_K

WATER = Path(__file__).parents[1] / "water" / "water.extxyz"
TEMPERATURE_K = 300.0
TIMESTEP_FS = 0.5
FRAME_STEPS, ROW_STEPS = 20, 2  # between frames of every bead; between rows of properties
BIN_A = 0.02  # A; narrower than the O-H bond's peak is wide

# PILE-G: velocity rescaling of the centroid, optimally damped Langevin dynamics of the ring's own modes.
INPUT = """<simulation verbosity='low' safe_stride='100'>
  <output prefix='out'>
    <properties filename='properties' stride='{rows}'>
      [step, time{{picosecond}}, conserved{{electronvolt}}, temperature{{kelvin}}, potential{{electronvolt}},
       kinetic_cv(H){{electronvolt}}, kinetic_cv(O){{electronvolt}}]
    </properties>
    <trajectory filename='beads' stride='{frames}'> positions{{angstrom}} </trajectory>
    <checkpoint filename='checkpoint' stride='500' overwrite='True'/>
  </output>
  <total_steps>{steps}</total_steps>
  <prng><seed>1</seed></prng>
  <ffdirect name='dpsim'>
    <pes>custom</pes> <pes_path>{pes}</pes_path> <batch_size>{beads}</batch_size>
    <parameters>{{template: init.extxyz, model: {model}}}</parameters>
  </ffdirect>
  <system>
    <initialize nbeads='{beads}'>
      <file mode='ase'>init.extxyz</file>
      <velocities mode='thermal' units='kelvin'>{temperature}</velocities>
    </initialize>
    <forces><force forcefield='dpsim'/></forces>
    <ensemble><temperature units='kelvin'>{temperature}</temperature></ensemble>
    <motion mode='dynamics'>
      <dynamics mode='nvt' splitting='baoab'>
        <timestep units='femtosecond'>{timestep}</timestep>
        <thermostat mode='pile_g'><tau units='femtosecond'>100</tau> <pile_lambda>0.5</pile_lambda></thermostat>
      </dynamics>
    </motion>
  </system>
</simulation>
"""


def main() -> None:
    """Run what has not been run, and print and save the results."""
    options = parsed_options()
    structure = Path(options.structure).resolve()
    model = find_model(options.model).resolve()
    results = {}
    for n_beads in options.beads:
        folder = Path(options.directory) / f"{n_beads}_beads"
        if not (folder / "finished").exists():
            run_ipi(folder, structure, model, n_beads, round(1e3 * options.duration / TIMESTEP_FS))
        results[n_beads] = analyse(folder, n_beads, round(1e3 * options.skip / TIMESTEP_FS))
    report(results, Path(options.directory))


def parsed_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--beads", type=int, nargs="+", default=[1, 16], help="numbers of beads")
    parser.add_argument("--duration", type=float, default=2.0, help="ps, for each of them")
    parser.add_argument("--skip", type=float, default=0.3, help="ps at the beginning that are left out")
    parser.add_argument("--model", default="water-pbe0ts-student", help="name of a bundled model, or a .dpsim file")
    parser.add_argument("--structure", default=WATER, help="equilibrated water, any file that ASE reads")
    parser.add_argument("--directory", default="pimd")
    return parser.parse_args()


def run_ipi(folder: Path, structure: Path, model: Path, n_beads: int, n_steps: int) -> None:
    """Write input.xml and run it in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    atoms = read(structure)
    atoms.set_velocities(np.zeros((len(atoms), 3)))  # i-PI draws them for all beads
    write(folder / "init.extxyz", atoms)
    text = INPUT.format(
        rows=ROW_STEPS,
        frames=FRAME_STEPS,
        steps=n_steps,
        pes=PES_PATH,
        beads=n_beads,
        model=model,
        temperature=TEMPERATURE_K,
        timestep=TIMESTEP_FS,
    )
    (folder / "input.xml").write_text(text)
    ipi = Path(sys.executable).with_name("i-pi")
    with (folder / "log.txt").open("w") as log:
        done = subprocess.run([sys.executable, ipi, "input.xml"], cwd=folder, stdout=log, stderr=log, check=False)
    if done.returncode != 0:
        sys.exit(f"i-PI failed; see {folder / 'log.txt'}")
    (folder / "finished").touch()


def analyse(folder: Path, n_beads: int, skipped_steps: int) -> dict[str, Estimate | RDF]:
    """Kinetic energies per atom (meV), and g_OH of all beads."""
    columns = np.loadtxt(folder / "out.properties").T
    columns = columns[:, columns[0] >= skipped_steps]
    symbols = read(folder / "init.extxyz").get_chemical_symbols()
    return {
        "H": mean_with_error(1e3 * columns[5] / symbols.count("H")),
        "O": mean_with_error(1e3 * columns[6] / symbols.count("O")),
        "g": rdf_of_beads(folder, n_beads, skipped_steps // FRAME_STEPS),
    }


def rdf_of_beads(folder: Path, n_beads: int, skipped_frames: int) -> RDF:
    """Every bead is a sample: their frames follow one another in one trajectory, so that blocks are blocks of time."""
    atoms = read(folder / "init.extxyz")
    cell = atoms.cell.array
    files = sorted(folder.glob("out.beads_*.xyz"))
    topology = write_topology(folder / "beads.pdb", atoms.get_chemical_symbols(), atoms.positions, cell)
    with TrajectoryWriter(folder / "beads.trr", len(atoms)) as trajectory:
        for k, frames in enumerate(zip(*(iread(file) for file in files), strict=True)):
            for bead, frame in enumerate(frames):
                if k >= skipped_frames:
                    trajectory.append(k * n_beads + bead, 1e-3 * k * FRAME_STEPS * TIMESTEP_FS, frame.positions, cell)
    bins = round(0.5 * float(atoms.cell.lengths().min()) / BIN_A)
    (result,) = rdf((topology, folder / "beads.trr"), [("O", "H")], bins=bins, blocks=5)
    return result


def report(results: dict[int, dict[str, Estimate | RDF]], directory: Path) -> None:
    """A table on the screen; results.json, one csv per number of beads, and a figure."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    classical = 1.5e3 * BOLTZMANN_EV_PER_K * TEMPERATURE_K
    print(f"kinetic energy per atom, centroid virial, meV (classical: {classical:.2f}); bond peak of g_OH")
    print(f"{'beads':>5}  {'H':>12}  {'O':>12}  {'position / A':>14}  {'height':>12}")
    figure, panels = pyplot.subplots(1, 2, figsize=(8, 3.5), layout="constrained")
    plain = {}
    for n_beads, found in results.items():
        g = found["g"]
        peak = g.shells[0]
        values = [found["H"], found["O"], peak.peak_position, peak.peak_height]
        texts = [format_value(v.value, v.error if v.error > 1e-9 else None) for v in values]  # one bead: exact
        print(f"{n_beads:>5}  {texts[0]:>12}  {texts[1]:>12}  {texts[2]:>14}  {texts[3]:>12}")
        names = ("kinetic_H_meV", "kinetic_O_meV", "peak_A", "peak_height")
        plain[n_beads] = {name: [v.value, v.error] for name, v in zip(names, values, strict=True)}
        save_rdf(directory / f"g_{n_beads}_beads.csv", [g])
        for axes in panels:
            axes.plot(g.r, g.g, label=f"{n_beads} beads" if n_beads > 1 else "classical")
            axes.fill_between(g.r, g.g - 2 * g.g_error, g.g + 2 * g.g_error, alpha=0.3)
    panels[0].set(xlabel="r (Å)", ylabel="$g_{OH}(r)$", xlim=(0.8, 1.3), title="bond")
    panels[1].set(xlabel="r (Å)", xlim=(1.3, None), ylim=(0, 2), title="hydrogen bonds and beyond")
    panels[0].legend()
    figure.savefig(directory / "g_OH.png", dpi=150)
    (directory / "results.json").write_text(json.dumps(plain, indent=1) + "\n")


if __name__ == "__main__":
    main()
