"""Which function makes an analysis: by the `type` of its configuration, imported when it is needed.

run(analysis, context: AnalysisContext) -> AnalysisOutput  after the stages (nve_check: a RunContext)
check(analysis, protocol: Protocol, atoms) -> None         before: refuse what does not fit the structure, ConfigError
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from dpsim.protocols.analyses import AnalysisBase
from dpsim.protocols.context import AnalysisContext, AnalysisOutput

_RUN = {
    "nve_check": "nve:run_nve_check",
    "rdf": "rdf:run_rdf",
    "adf": "adf:run_adf",
    "averages": "averages:run_averages",
    "density": "density:run_density",
    "diffusion": "diffusion_stage:run_diffusion",
    "vdos": "vdos:run_vdos",
}
_CHECK = {
    "rdf": "rdf:check_rdf",
    "adf": "adf:check_adf",
    "diffusion": "diffusion_stage:check_diffusion",
    "vdos": "vdos:check_vdos",
}


def run_analysis(analysis: AnalysisBase, context: AnalysisContext) -> AnalysisOutput:
    """Numbers, figures and warnings of one analysis."""
    output: AnalysisOutput = _function(_RUN[type_of(analysis)])(analysis, context)
    return output


def check_analysis(analysis: AnalysisBase, protocol: Any, atoms: Any) -> None:
    """Raise DpsimError where an analysis cannot be made of this structure."""
    if (name := _CHECK.get(type_of(analysis))) is not None:
        _function(name)(analysis, protocol, atoms)


def type_of(analysis: AnalysisBase) -> str:
    """Its `type`."""
    return str(analysis.type)  # type: ignore[attr-defined]  # every analysis has one


def _function(name: str) -> Any:
    module, _, function = name.partition(":")
    return getattr(import_module(f"dpsim.protocols.{module}"), function)
