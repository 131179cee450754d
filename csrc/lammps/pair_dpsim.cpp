/* pair_style dpsim, see pair_dpsim.h. Order: library, settings and elements, neighbours, evaluation, deviation, restart. */
#include "pair_dpsim.h"

#include "atom.h"
#include "comm.h"
#include "element_masses.h"
#include "error.h"
#include "force.h"
#include "memory.h"
#include "neigh_list.h"
#include "neighbor.h"
#include "update.h"
#include "utils.h"

#include <algorithm>
#include <climits>
#include <cmath>
#include <cstring>
#include <dlfcn.h>
#include <limits>

using namespace LAMMPS_NS;

// ---- the library ------------------------------------------------------------------------------------------------------

namespace {

/* libdpsim's functions, found at run time: one library serves this plugin and Python. */
struct Library {
  decltype(&dpsim_capabilities) capabilities;
  decltype(&dpsim_last_error) last_error;
  decltype(&dpsim_student_from_memory) student_from_memory;
  decltype(&dpsim_student_close) student_close;
  decltype(&dpsim_student_info) student_info;
  decltype(&dpsim_student_type_name) student_type_name;
  decltype(&dpsim_workspace_create) workspace_create;
  decltype(&dpsim_workspace_free) workspace_free;
  decltype(&dpsim_workspace_bytes) workspace_bytes;
  decltype(&dpsim_student_compute_neighbors) student_compute_neighbors;
  std::string problem;

  Library()
  {
    void *handle = dlopen(DPSIM_LIBRARY, RTLD_NOW | RTLD_LOCAL);
    if (!handle) {
      problem = dlerror();
      return;
    }
    auto find = [&](auto &function, const char *name) {
      function = reinterpret_cast<std::decay_t<decltype(function)>>(dlsym(handle, name));
      if (!function) problem = fmt::format("{} has no function {}", DPSIM_LIBRARY, name);
    };
    find(capabilities, "dpsim_capabilities");
    find(last_error, "dpsim_last_error");
    find(student_from_memory, "dpsim_student_from_memory");
    find(student_close, "dpsim_student_close");
    find(student_info, "dpsim_student_info");
    find(student_type_name, "dpsim_student_type_name");
    find(workspace_create, "dpsim_workspace_create");
    find(workspace_free, "dpsim_workspace_free");
    find(workspace_bytes, "dpsim_workspace_bytes");
    find(student_compute_neighbors, "dpsim_student_compute_neighbors");
    if (!problem.empty()) return;
    dpsim_capabilities_t found;
    capabilities(&found);
    if (found.abi != DPSIM_ABI)
      problem = fmt::format("{} has ABI {}; this plugin was compiled for {}", DPSIM_LIBRARY, found.abi, DPSIM_ABI);
  }
};

const Library &library()
{
  static const Library loaded;
  return loaded;
}

const char *precision_name(int precision)
{
  return precision == DPSIM_FLOAT32 ? "float32" : "float64";
}

}    // namespace

PairDpsim::PairDpsim(LAMMPS *lmp) : Pair(lmp)
{
  single_enable = 0;
  restartinfo = 1;
  one_coeff = 1;
  manybody_flag = 1;
  no_virial_fdotr_compute = 1;    // the kernels give the virial
  centroidstressflag = CENTROID_NOTAVAIL;
  comm_reverse = 3;
  if (!library().problem.empty())
    error->all(FLERR, "pair_style dpsim cannot load its library: {}. Reinstall dpsim.", library().problem);
}

PairDpsim::~PairDpsim()
{
  close_models();
  if (deviation_file) fclose(deviation_file);
  delete[] pvector;
  if (allocated) {
    memory->destroy(setflag);
    memory->destroy(cutsq);
  }
}

void PairDpsim::close_models()
{
  for (Model &model : models) {
    library().workspace_free(model.workspace);
    library().student_close(model.student);
    model.workspace = nullptr;
    model.student = nullptr;
  }
}

void PairDpsim::fail(const std::string &what)
{
  error->one(FLERR, "pair_style dpsim, step {}: {}", update->ntimestep, what);
}

// ---- settings and elements --------------------------------------------------------------------------------------------

/* pair_style dpsim student.dpsim [more.dpsim ...] [precision P] [threads N] [out_freq N] [out_file NAME]
 *            [relative F] [relative_v E] */
void PairDpsim::settings(int narg, char **arg)
{
  const std::vector<std::string> keywords = {"precision", "threads", "out_freq", "out_file", "relative", "relative_v"};
  auto is_keyword = [&](const char *word) {
    return std::find(keywords.begin(), keywords.end(), word) != keywords.end();
  };
  close_models();
  models.clear();
  names.clear();
  precision = DPSIM_PRECISION_FILE;
  threads = 0;
  out_freq = 100;
  out_file = "model_devi.out";
  relative = relative_v = 0.0;
  if (deviation_file) fclose(deviation_file);
  deviation_file = nullptr;
  append = false;

  int iarg = 0;
  for (; iarg < narg && !is_keyword(arg[iarg]); iarg++) {
    models.emplace_back();
    models.back().path = arg[iarg];
  }
  if (models.empty())
    error->all(FLERR, "pair_style dpsim names no model; expected: pair_style dpsim student.dpsim [more.dpsim ...]");
  for (; iarg < narg; iarg += 2) {
    const std::string key = arg[iarg];
    if (!is_keyword(arg[iarg]))
      error->all(FLERR, "pair_style dpsim has '{}' after its keywords; expected one of {}, models come first", key,
                 utils::join_words(keywords, ", "));
    if (iarg + 1 >= narg) utils::missing_cmd_args(FLERR, "pair_style dpsim " + key, error);
    const std::string value = arg[iarg + 1];
    if (key == "precision") {
      if (value != "float32" && value != "float64")
        error->all(FLERR, "pair_style dpsim precision is {}; expected float32 or float64", value);
      precision = value == "float32" ? DPSIM_FLOAT32 : DPSIM_FLOAT64;
    } else if (key == "threads") {
      threads = utils::inumeric(FLERR, value, false, lmp);
      if (threads < 1) error->all(FLERR, "pair_style dpsim threads is {}; expected at least 1", value);
    } else if (key == "out_freq") {
      out_freq = utils::inumeric(FLERR, value, false, lmp);
      if (out_freq < 0) error->all(FLERR, "pair_style dpsim out_freq is {}; expected 0 (never) or more", value);
    } else if (key == "out_file") {
      out_file = value;
    } else {
      const double nu = utils::numeric(FLERR, value, false, lmp);
      if (!(nu > 0.0)) error->all(FLERR, "pair_style dpsim {} is {}; expected more than 0", key, value);
      (key == "relative" ? relative : relative_v) = nu;
    }
  }
  load_models();
}

/* Open every model, a path or the name of one that comes with dpsim: rank 0 reads, all hold. */
void PairDpsim::load_models()
{
  for (Model &model : models) {
    std::string bytes;
    int64_t size = -1;
    if (comm->me == 0) {
      FILE *file = fopen(model.path.c_str(), "rb");
      if (!file) file = fopen((DPSIM_MODELS "/" + model.path + ".dpsim").c_str(), "rb");
      if (file) {
        char buffer[65536];
        for (size_t n; (n = fread(buffer, 1, sizeof(buffer), file)) > 0;) bytes.append(buffer, n);
        if (!ferror(file)) size = (int64_t) bytes.size();
        fclose(file);
      }
    }
    MPI_Bcast(&size, 1, MPI_INT64_T, 0, world);
    if (size < 0)
      error->all(FLERR, "pair_style dpsim cannot read '{}'; expected a student, as written by: dpsim compress", model.path);
    if (size > INT_MAX) error->all(FLERR, "'{}' has {} bytes; expected a student of less than 2 GiB", model.path, size);
    bytes.resize(size);
    MPI_Bcast(bytes.data(), (int) size, MPI_CHAR, 0, world);
    if (library().student_from_memory(bytes.data(), size, precision, &model.student))
      error->all(FLERR, "pair_style dpsim cannot use '{}': {}", model.path, library().last_error());
    const dpsim_execution execution = {threads ? threads : comm->nthreads, DPSIM_ISA_BEST};
    if (library().workspace_create(&execution, &model.workspace))
      error->all(FLERR, "pair_style dpsim: {}", library().last_error());
    model.knows_list = false;

    if (comm->me == 0) {
      dpsim_student_info_t info;
      library().student_info(model.student, &info);
      std::string elements;
      for (int t = 0; t < info.n_types; t++) elements += std::string(" ") + library().student_type_name(model.student, t);
      utils::logmesg(lmp, "dpsim model {}: elements{}, cutoff {} A, {}, {} thread(s)\n", model.path, elements, info.rcut,
                     precision_name(info.precision), execution.threads);
    }
  }
  const bool committee = models.size() > 1;
  delete[] pvector;
  nextra = committee ? 6 : 0;
  pvector = committee ? new double[6]() : nullptr;
  loaded = true;
}

void PairDpsim::allocate()
{
  const int n = atom->ntypes + 1;
  memory->create(setflag, n, n, "pair:setflag");
  memory->create(cutsq, n, n, "pair:cutsq");
  for (int i = 0; i < n; i++)
    for (int j = 0; j < n; j++) setflag[i][j] = 0;
  allocated = 1;
}

/* pair_coeff * * O H: the element of every atom type, or NULL for one that another style serves (pair_style hybrid) */
void PairDpsim::coeff(int narg, char **arg)
{
  if (!allocated) allocate();
  if (strcmp(arg[0], "*") != 0 || strcmp(arg[1], "*") != 0)
    error->all(FLERR, "pair_coeff {} {} is not possible with dpsim; expected * *, then an element for each type", arg[0],
               arg[1]);
  if (!loaded) load_models();    // after read_restart in pair_style hybrid
  names.assign(1, "");
  for (int i = 2; i < narg; i++) names.emplace_back(arg[i]);
  map_elements();
}

/* The type of each element in each model; pairs of named types are set. */
void PairDpsim::map_elements()
{
  some_null = false;
  for (Model &model : models) {
    dpsim_student_info_t info;
    library().student_info(model.student, &info);
    std::vector<std::string> known;
    for (int t = 0; t < info.n_types; t++) known.emplace_back(library().student_type_name(model.student, t));
    const std::string expected =
        fmt::format("expected one for each of the {} atom types, of those that {} knows: {}", atom->ntypes, model.path,
                    utils::join_words(known, " "));
    if ((int) names.size() != atom->ntypes + 1)
      error->all(FLERR, "pair_coeff names {} elements; {}", (int) names.size() - 1, expected);
    model.type.assign(1, -1);
    for (int i = 1; i <= atom->ntypes; i++) {
      const auto found = std::find(known.begin(), known.end(), names[i]);
      const bool null = names[i] == "NULL";
      if (found == known.end() && !null)
        error->all(FLERR, "pair_coeff names the element {} for atom type {}; {}", names[i], i, expected);
      model.type.push_back(null ? -1 : (int32_t) (found - known.begin()));
      some_null |= null;
    }
  }
  for (int i = 1; i <= atom->ntypes; i++)
    for (int j = i; j <= atom->ntypes; j++)
      setflag[i][j] = names[i] != "NULL" && names[j] != "NULL";
}

void PairDpsim::init_style()
{
  if (strcmp(update->unit_style, "metal") == 0)
    scale = 1.0;
  else if (strcmp(update->unit_style, "real") == 0)
    scale = utils::get_conversion_factor(utils::ENERGY, utils::METAL2REAL);
  else
    error->all(FLERR, "pair_style dpsim needs lengths in A: units is {}; expected metal or real", update->unit_style);
  if (!force->newton_pair)
    error->all(FLERR, "pair_style dpsim needs newton on (forces on ghost atoms are sent to their owners); newton is off");
  if (atom->molecular != Atom::ATOMIC)
    for (int k = 1; k < 4; k++)
      if (force->special_lj[k] == 0.0 && force->special_coul[k] == 0.0)
        error->all(FLERR,
                   "special_bonds takes bonded pairs out of the neighbour list, and a model of all interactions needs "
                   "them. Write: special_bonds lj/coul 1.0 1.0 1.0 (or 1e-50, if other styles must not see them)");
  if (!loaded) {    // after read_restart
    load_models();
    map_elements();
  }
  check_masses();
  neighbor->add_request(this, NeighConst::REQ_FULL);
  for (Model &model : models) model.knows_list = false;
  first_type_known = false;
  warned = false;
}

/* Swapped names are the commonest mistake, and masses know better. Isotopes and heavy hydrogens are left in peace. */
void PairDpsim::check_masses()
{
  if (!atom->mass || comm->me != 0) return;
  for (int i = 1; i <= atom->ntypes; i++)
    for (const ElementMass &element : ELEMENT_MASSES)
      if (names[i] == element.symbol && (atom->mass[i] > 4.5 * element.mass || 4.5 * atom->mass[i] < element.mass))
        error->warning(FLERR, "pair_coeff names atom type {} {}, of mass {:.5g}, but its mass is {:.5g}. Are elements swapped?", i,
                       names[i], element.mass, atom->mass[i]);
}

double PairDpsim::init_one(int i, int j)
{
  if (setflag[i][j] == 0) error->all(FLERR, "All pair coeffs are not set");
  double rcut = 0.0;
  for (const Model &model : models) {
    dpsim_student_info_t info;
    library().student_info(model.student, &info);
    rcut = std::max(rcut, info.rcut);
  }
  return rcut;
}

// ---- neighbours -------------------------------------------------------------------------------------------------------

/* LAMMPS's full list as dpsim wants it: one array for all centres, over the atoms that take part. */
void PairDpsim::update_list()
{
  const int nlocal = atom->nlocal, ntotal = nlocal + atom->nghost;
  std::vector<int32_t> number;    // of an atom among those that take part
  atoms.clear();
  n_local = nlocal;
  n_all = ntotal;
  if (some_null) {
    number.assign(ntotal, -1);
    for (int i = 0; i < ntotal; i++) {
      if (i == nlocal) n_local = (int) atoms.size();
      if (names[atom->type[i]] == "NULL") continue;
      number[i] = (int32_t) atoms.size();
      atoms.push_back(i);
    }
    n_all = (int) atoms.size();
    if (ntotal == nlocal) n_local = n_all;
  }

  offsets.assign(n_local + 1, 0);
  for (int ii = 0; ii < list->inum; ii++) {
    const int i = list->ilist[ii];
    offsets[(some_null ? number[i] : i) + 1] = list->numneigh[i];
  }
  for (int i = 0; i < n_local; i++) offsets[i + 1] += offsets[i];
  neighbors.resize(offsets[n_local]);
  for (int ii = 0; ii < list->inum; ii++) {
    const int i = list->ilist[ii];
    const int *found = list->firstneigh[i];
    int32_t *out = neighbors.data() + offsets[some_null ? number[i] : i];
    for (int k = 0; k < list->numneigh[i]; k++) {
      const int j = found[k] & NEIGHMASK;
      out[k] = some_null ? number[j] : j;
    }
  }
  for (Model &model : models) {
    model.types.resize(n_all);
    for (int i = 0; i < n_all; i++) model.types[i] = model.type[atom->type[some_null ? atoms[i] : i]];
    model.knows_list = false;
  }
  listed_atoms = ntotal;
}

/* The type of the atom with the smallest ID of all ranks: some imported models read it. */
void PairDpsim::find_first_atom()
{
  struct {
    int tag, type;
  } mine = {INT_MAX, 1}, first;
  for (int i = 0; i < atom->nlocal; i++)
    if (atom->tag[i] < mine.tag) mine = {(int) atom->tag[i], atom->type[i]};
  MPI_Allreduce(&mine, &first, 1, MPI_2INT, MPI_MINLOC, world);
  first_type = first.type;
  first_type_known = true;
}

// ---- evaluation -------------------------------------------------------------------------------------------------------

void PairDpsim::compute(int eflag, int vflag)
{
  ev_init(eflag, vflag);
  if (!first_type_known) find_first_atom();
  if (neighbor->ago == 0 || listed_atoms != atom->nlocal + atom->nghost) update_list();
  if (some_null) {
    positions.resize(3 * (size_t) n_all);
    for (int i = 0; i < n_all; i++) std::copy_n(atom->x[atoms[i]], 3, &positions[3 * (size_t) i]);
  }

  const bool committee = models.size() > 1 && out_freq > 0 && update->ntimestep % out_freq == 0;
  double energy = 0.0;
  if (eflag_atom) atom_energies.resize(n_local);
  if (vflag_atom) atom_virials.resize(9 * (size_t) n_local);
  evaluate(models[0], eflag_global ? &energy : nullptr, eflag_atom ? atom_energies.data() : nullptr,
           vflag_either || committee, vflag_atom ? atom_virials.data() : nullptr);
  accumulate(models[0], energy);
  if (committee) {
    for (size_t m = 1; m < models.size(); m++) evaluate(models[m], nullptr, nullptr, true, nullptr);
    deviation();
  }
}

/* Forces of the model, and what else is wanted; on a rank without atoms, zeros. */
void PairDpsim::evaluate(Model &model, double *energy, double *atom_energy, bool virial, double *atom_virial)
{
  model.forces.resize(3 * (size_t) n_all);
  if (n_local == 0) {
    std::fill(model.forces.begin(), model.forces.end(), 0.0);
    std::fill_n(model.virial, 9, 0.0);
    return;
  }
  dpsim_results results = {};
  results.energy = energy;
  results.atom_energy = atom_energy;
  results.forces = model.forces.data();
  results.virial = virial ? model.virial : nullptr;
  results.atom_virial = atom_virial;
  const double *x = some_null ? positions.data() : atom->x[0];
  if (library().student_compute_neighbors(model.student, model.workspace, n_local, n_all, model.types.data(), x,
                                          offsets.data(), neighbors.data(), !model.knows_list,
                                          std::max(0, model.type[first_type]), &results))
    fail(library().last_error());
  model.knows_list = true;
  if (results.below_range > 0) warn_below_range(model, results.below_range);
}

void PairDpsim::warn_below_range(const Model &model, int64_t pairs)
{
  if (warned) return;
  warned = true;
  dpsim_student_info_t info;
  library().student_info(model.student, &info);
  error->warning(FLERR, "step {}: {} pairs are nearer than {} A, where the tables of {} begin; they are extrapolated",
                 update->ntimestep, pairs, info.r_min, model.path);
}

/* Add a model's results to LAMMPS's arrays, in its units; a force that is not finite ends the run, naming the atom. */
void PairDpsim::accumulate(const Model &model, double energy)
{
  double **f = atom->f;
  const double *g = model.forces.data();
  double check = 0.0;
  for (int i = 0; i < n_all; i++, g += 3) {
    double *to = f[some_null ? atoms[i] : i];
    for (int d = 0; d < 3; d++) to[d] += scale * g[d];
    check += g[0] + g[1] + g[2];
  }
  if (!std::isfinite(check + energy)) report_not_finite(model);
  if (eflag_global) eng_vdwl += scale * energy;

  constexpr int ORDER[6][2] = {{0, 0}, {1, 1}, {2, 2}, {0, 1}, {0, 2}, {1, 2}};    // xx yy zz xy xz yz
  auto component = [&](const double *w, int k) {
    return 0.5 * scale * (w[3 * ORDER[k][0] + ORDER[k][1]] + w[3 * ORDER[k][1] + ORDER[k][0]]);
  };
  if (vflag_global)
    for (int k = 0; k < 6; k++) virial[k] += component(model.virial, k);
  for (int i = 0; i < n_local; i++) {
    const int to = some_null ? atoms[i] : i;
    if (eflag_atom) eatom[to] += scale * atom_energies[i];
    if (vflag_atom)
      for (int k = 0; k < 6; k++) vatom[to][k] += component(&atom_virials[9 * (size_t) i], k);
  }
}

void PairDpsim::report_not_finite(const Model &model)
{
  for (int i = 0; i < n_all; i++) {
    const double *g = &model.forces[3 * (size_t) i];
    const int a = some_null ? atoms[i] : i;
    if (!std::isfinite(g[0] + g[1] + g[2]))
      fail(fmt::format("the force on atom {} ({}) at ({:.6g}, {:.6g}, {:.6g}) A is not finite. Look for overlapping "
                       "atoms, or reduce the time step",
                       atom->tag[a], names[atom->type[a]], atom->x[a][0], atom->x[a][1], atom->x[a][2]));
  }
  fail("the energy is not finite. Look for overlapping atoms, or reduce the time step");
}

// ---- model deviation --------------------------------------------------------------------------------------------------

/* The spread of the models at this step, in LAMMPS's units, as DeePMD-kit defines it (docs/lammps.md):
 *     force of an atom: sqrt(<|F - <F>|^2>);      virial component: sqrt(<(W - <W>)^2>) / number of atoms
 * max, min and mean over atoms; max, min and root mean square over the nine components. Relative ones, without a unit,
 * are divided by |<F>| + relative, and by |<W>| / number of atoms + relative_v. */
void PairDpsim::deviation()
{
  const int nlocal = atom->nlocal, ntotal = nlocal + atom->nghost;
  const int n_models = (int) models.size();
  std::vector<double> forces(3 * (size_t) ntotal), mean(3 * (size_t) nlocal, 0.0), square(nlocal, 0.0);
  std::vector<double> virials;
  for (Model &model : models) {
    std::fill(forces.begin(), forces.end(), 0.0);
    for (int i = 0; i < n_all; i++)
      std::copy_n(&model.forces[3 * (size_t) i], 3, &forces[3 * (size_t) (some_null ? atoms[i] : i)]);
    reversing = forces.data();
    comm->reverse_comm(this);
    model.forces.assign(forces.begin(), forces.begin() + 3 * (size_t) nlocal);    // of owned atoms, complete
    for (size_t k = 0; k < mean.size(); k++) mean[k] += forces[k] / n_models;
    virials.insert(virials.end(), model.virial, model.virial + 9);
  }
  for (const Model &model : models)
    for (size_t k = 0; k < mean.size(); k++) square[k / 3] += std::pow(model.forces[k] - mean[k], 2) / n_models;

  deviations.assign(atom->nmax, 0.0);
  double lowest = std::numeric_limits<double>::max(), highest = 0.0, sums[2] = {0.0, 0.0};
  for (int i = 0; i < nlocal; i++) {
    if (names[atom->type[i]] == "NULL") continue;
    deviations[i] = scale * std::sqrt(square[i]);
    if (relative > 0.0)
      deviations[i] /= scale * std::hypot(mean[3 * i], mean[3 * i + 1], mean[3 * i + 2]) + relative;
    lowest = std::min(lowest, deviations[i]);
    highest = std::max(highest, deviations[i]);
    sums[0] += deviations[i];
    sums[1] += 1.0;
  }
  MPI_Allreduce(MPI_IN_PLACE, &lowest, 1, MPI_DOUBLE, MPI_MIN, world);
  MPI_Allreduce(MPI_IN_PLACE, &highest, 1, MPI_DOUBLE, MPI_MAX, world);
  MPI_Allreduce(MPI_IN_PLACE, sums, 2, MPI_DOUBLE, MPI_SUM, world);
  MPI_Allreduce(MPI_IN_PLACE, virials.data(), (int) virials.size(), MPI_DOUBLE, MPI_SUM, world);

  double found[6] = {0.0, std::numeric_limits<double>::max(), 0.0, highest, lowest, sums[0] / sums[1]};
  double average[9] = {}, squared_norm = 0.0;
  for (int k = 0; k < 9; k++) {
    for (int m = 0; m < n_models; m++) average[k] += virials[9 * m + k] / n_models;
    squared_norm += average[k] * average[k];
  }
  const double divisor = relative_v > 0.0 ? scale * std::sqrt(squared_norm) / sums[1] + relative_v : 1.0;
  for (int k = 0; k < 9; k++) {
    double variance = 0.0;
    for (int m = 0; m < n_models; m++) variance += std::pow(virials[9 * m + k] - average[k], 2) / n_models;
    const double spread = scale * std::sqrt(variance) / sums[1] / divisor;
    found[0] = std::max(found[0], spread);
    found[1] = std::min(found[1], spread);
    found[2] += spread * spread / 9.0;
  }
  found[2] = std::sqrt(found[2]);
  if (comm->me == 0) write_deviation(found);
}

/* A row of out_file, and the vector of `compute pair`, which sums over ranks. */
void PairDpsim::write_deviation(const double *found)
{
  std::copy_n(found, 6, pvector);
  if (!deviation_file) {
    deviation_file = fopen(out_file.c_str(), append ? "a" : "w");
    if (!deviation_file) fail(fmt::format("cannot write out_file '{}': {}", out_file, utils::getsyserror()));
    if (!append) {
      fprintf(deviation_file, "#%11s", "step");
      for (const char *name : {"max_devi_v", "min_devi_v", "avg_devi_v", "max_devi_f", "min_devi_f", "avg_devi_f"})
        fprintf(deviation_file, " %18s", name);
      fprintf(deviation_file, "\n");
    }
    last_row = -1;
  }
  if (update->ntimestep == last_row) return;    // the setup of a run repeats the step before it
  last_row = update->ntimestep;
  fprintf(deviation_file, "%12lld", (long long) update->ntimestep);
  for (int k = 0; k < 6; k++) fprintf(deviation_file, " %18.6e", found[k]);
  fprintf(deviation_file, "\n");
  fflush(deviation_file);
}

int PairDpsim::pack_reverse_comm(int n, int first, double *buffer)
{
  std::copy_n(reversing + 3 * (size_t) first, 3 * (size_t) n, buffer);
  return 3 * n;
}

void PairDpsim::unpack_reverse_comm(int n, int *list, double *buffer)
{
  for (int k = 0; k < n; k++)
    for (int d = 0; d < 3; d++) reversing[3 * (size_t) list[k] + d] += buffer[3 * k + d];
}

/* For `fix pair`: deviation of the force on each atom, as of the last step that out_freq divides. */
void *PairDpsim::extract_peratom(const char *name, int &columns)
{
  if (strcmp(name, "deviation") != 0) return nullptr;
  columns = 0;
  deviations.resize(atom->nmax, 0.0);
  return deviations.data();
}

double PairDpsim::memory_usage()
{
  double bytes = Pair::memory_usage() + offsets.size() * sizeof(int64_t) + neighbors.size() * sizeof(int32_t);
  for (const Model &model : models)
    bytes += library().workspace_bytes(model.workspace) + model.forces.size() * sizeof(double);
  return bytes;
}

// ---- restart ----------------------------------------------------------------------------------------------------------

namespace {

void write_text(FILE *file, const std::string &text)
{
  const int n = (int) text.size();
  fwrite(&n, sizeof(int), 1, file);
  fwrite(text.data(), 1, n, file);
}

}    // namespace

std::string PairDpsim::read_text(FILE *file)
{
  int n = 0;
  if (comm->me == 0) utils::sfread(FLERR, &n, sizeof(int), 1, file, nullptr, error);
  MPI_Bcast(&n, 1, MPI_INT, 0, world);
  std::string text(n, ' ');
  if (comm->me == 0) utils::sfread(FLERR, text.data(), 1, n, file, nullptr, error);
  MPI_Bcast(text.data(), n, MPI_CHAR, 0, world);
  return text;
}

/* The models' paths, the settings and the elements: models are read anew. */
void PairDpsim::write_restart(FILE *file)
{
  write_restart_settings(file);
  std::string all;
  for (int i = 1; i <= atom->ntypes; i++) all += (i > 1 ? " " : "") + names[i];
  write_text(file, all);
}

void PairDpsim::write_restart_settings(FILE *file)
{
  const int values[4] = {(int) models.size(), precision, threads, out_freq};
  fwrite(values, sizeof(int), 4, file);
  for (const Model &model : models) write_text(file, model.path);
  write_text(file, out_file);
  const double levels[2] = {relative, relative_v};
  fwrite(levels, sizeof(double), 2, file);
}

void PairDpsim::read_restart(FILE *file)
{
  read_restart_settings(file);
  allocate();
  names.assign(1, "");
  for (const std::string &name : utils::split_words(read_text(file))) names.push_back(name);
  for (int i = 1; i <= atom->ntypes; i++)
    for (int j = i; j <= atom->ntypes; j++) setflag[i][j] = names[i] != "NULL" && names[j] != "NULL";
}

/* The models are opened by the next run, so that a pair_style command before it can name others. */
void PairDpsim::read_restart_settings(FILE *file)
{
  int values[4];
  if (comm->me == 0) utils::sfread(FLERR, values, sizeof(int), 4, file, nullptr, error);
  MPI_Bcast(values, 4, MPI_INT, 0, world);
  precision = values[1];
  threads = values[2];
  out_freq = values[3];
  for (int m = 0; m < values[0]; m++) {
    models.emplace_back();
    models.back().path = read_text(file);
  }
  out_file = read_text(file);
  double levels[2];
  if (comm->me == 0) utils::sfread(FLERR, levels, sizeof(double), 2, file, nullptr, error);
  MPI_Bcast(levels, 2, MPI_DOUBLE, 0, world);
  relative = levels[0];
  relative_v = levels[1];
  append = true;
  loaded = false;
}
