"""Names of one quantity: the same labels stand in different data sets under different names.

Two names are the same quantity where a group below holds both. A group also holds what the quantity follows from, and
what the same calculation gives beside it and is nearly determined by it: an elastic tensor has both moduli in it, a
phonon density of states its last peak, a total dielectric constant is the electronic one and the ions' part. Computed
and measured values of a quantity are two quantities; values of different functionals are one.

The names are those of Materials Project, JARVIS, Matbench and matminer, and the short ones of Devi, Butler & Gautam
(2024).
"""

from __future__ import annotations

import re

_GROUPS: dict[str, str] = {
    "formation energy, computed": """
        fe e_form mp_e_form megnet_e_form formation_energy formation_energy_per_atom formation_energy_peratom
        formation_energy_per_site delta_e heat_of_formation heat_all heat_ref perovskites energy_per_atom
        uncorrected_energy_per_atom total_energy_per_atom optb88vdw_total_energy""",
    "formation energy, measured": "e_form_expt expt_e_form expt_formation_enthalpy formation_enthalpy_expt",
    "distance to the hull": "e_above_hull e_hull ehull energy_above_hull",
    "band gap, computed": """
        bg band_gap bandgap gap gap_pbe pbe_gap mp_gap mp_bandgap megnet_bandgap megnet_gappbe optb88vdw_bandgap
        mbj_bandgap hse_gap hse_bandgap scan_gap dir_gap ind_gap direct_gap indirect_gap direct_band_gap
        indirect_band_gap mp_is_metal is_metal""",
    "band gap, measured": "ebg gap_expt expt_gap expt_band_gap band_gap_expt experimental_band_gap expt_is_metal",
    "elastic moduli": """
        g gv g_v g_voigt g_reuss g_vrh gvrh shear_modulus shear_modulus_gv shear_modulus_vrh shear_modulus_voigt
        shear_modulus_reuss k kv k_v k_voigt k_reuss k_vrh kvrh bulk_modulus bulk_modulus_kv bulk_modulus_vrh
        bulk_modulus_voigt bulk_modulus_reuss elastic_tensor elastic_voigt elastic_full elastic_tensor_original
        elasticity compliance_tensor c_ij young_modulus youngs_modulus""",
    "phonons": """
        ph phonons last_phonon_dos_peak last_phdos_peak phonon_dos phonon_dos_peak highest_phonon_dos_peak phdos
        max_phonon_frequency phonon_bandstructure""",
    "dielectric constants": """
        dc poly_total poly_electronic e_total e_electronic e_ionic dielectric dielectric_constant dielectric_total
        dielectric_electronic dielectric_ionic dielectric_tensor total_dielectric_constant
        electronic_dielectric_constant eps_total eps_electronic eps_inf eps_static n refractive_index
        dfpt_piezo_max_dielectric dfpt_piezo_max_dielectric_electronic dfpt_piezo_max_dielectric_ionic
        epsx epsy epsz avg_eps mepsx mepsy mepsz avg_meps""",
    "piezoelectric moduli": """
        pz eij_max e_ij_max eij piezo_voigt piezo_full piezo_tensor piezoelectric_tensor piezoelectric_modulus
        dfpt_piezo_max_eij dfpt_piezo_max_dij""",
    "magnetic moments": """
        magmom_site magmom magmoms magmom_oszicar magmom_outcar total_magnetization total_magnetization_per_atom
        total_abs_magmom_per_atom total_magnetization_normalized_vol total_magnetization_normalized_formula_units""",
    "Born charges": "born_charges born_effective_charges",
    "surface energy": "surface_energy weighted_surface_energy",
    "work function": "work_function weighted_work_function",
    "exfoliation energy": "exfoliation_en exfoliation_energy jdft2d",
    "volume": "volume_per_atom volume density",
}

_MEMBERS = {name: quantity for quantity, names in _GROUPS.items() for name in names.split()}
_UNIT = re.compile(r"(?<!log10)(?<!log)(?<!ln)\s+\((?:[^()]|\([^()]*\))*\)$")
_BEFORE = re.compile(r"^(matbench_)?((log10|log|ln)_)?(?=.)")


def plain_name(name: str) -> str:
    """A name without case, unit, punctuation and what only says how it is given: ``log10(G_VRH)`` is ``g_vrh``."""
    bare = _UNIT.sub("", name.strip().lower())
    return _BEFORE.sub("", re.sub(r"[^a-z0-9]+", "_", bare).strip("_"))


def same_quantity(one: str, other: str) -> bool:
    """Whether two names stand for the same quantity, or for quantities of which one tells the other."""
    one, other = plain_name(one), plain_name(other)
    return one == other or (one in _MEMBERS and _MEMBERS[one] == _MEMBERS.get(other))
