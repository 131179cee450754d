/* What LAMMPS loads: registers pair_style dpsim after a check of the version it was compiled for.
 *
 * LAMMPS's classes change between releases, updates of a stable release included, so a plugin serves the one version
 * whose headers it was compiled with. Compiled by dpsim, it knows that version's commit (DPSIM_LAMMPS_COMMIT) and refuses
 * any other; compiled by hand in LAMMPS's sources, LAMMPS compares the dates of version.h.
 */
#include "pair_dpsim.h"

#include "fix.h"
#include "modify.h"
#ifndef DPSIM_LAMMPS_COMMIT
#include "version.h"
#endif

#include <cstdio>
#include <cstdlib>
#include <cstring>

using namespace LAMMPS_NS;

namespace {

/* As in LAMMPS's lammpsplugin.h, which its Python package does not ship. */
struct Plugin {
  const char *version, *style, *name, *info, *author;
  Pair *(*creator)(LAMMPS *);
  void *handle;
};
using Register = void (*)(Plugin *, void *);

Pair *create(LAMMPS *lmp)
{
  return new PairDpsim(lmp);
}

}    // namespace

#define EXPORT extern "C" __attribute__((visibility("default")))

EXPORT void lammpsplugin_init(void *lmp, void *handle, void *regfunc)
{
#ifdef DPSIM_LAMMPS_COMMIT
  if (strcmp(LAMMPS::git_commit(), DPSIM_LAMMPS_COMMIT) != 0) {
    int rank;
    MPI_Comm_rank(MPI_COMM_WORLD, &rank);
    if (rank == 0)
      fprintf(stderr,
              "WARNING: pair_style dpsim is not available: this plugin was compiled for LAMMPS %s, and this is LAMMPS %s "
              "(%s). To compile it for the installed one: python -m dpsim.calculators.lammps_pair\n",
              DPSIM_LAMMPS_NAME, LAMMPS::git_descriptor(), LAMMPS::git_commit());
    return;
  }
  const char *version = static_cast<LAMMPS *>(lmp)->version;
#else
  const char *version = LAMMPS_VERSION;
#endif
  Plugin plugin = {version, "pair", "dpsim", "pair_style dpsim " DPSIM_VERSION, "the dpsim developers", create, handle};
  reinterpret_cast<Register>(regfunc)(&plugin, lmp);
}

/* The global state of a fix (a Nose-Hoover chain, a generator of random numbers, ...) as its restart record, for dpsim's
 * LAMMPS engine. Returns its number of bytes, of which at most `capacity` are copied to `out`; -1: no such fix. */
EXPORT int64_t dpsim_fix_state(void *lmp, const char *id, char *out, int64_t capacity)
{
  Fix *fix = static_cast<LAMMPS *>(lmp)->modify->get_fix_by_id(id);
  if (!fix) return -1;
  char *record = nullptr;
  size_t size = 0;
  FILE *file = open_memstream(&record, &size);
  if (!file) return -1;
  fix->write_restart(file);
  fclose(file);
  const int64_t bytes = size < sizeof(int) ? 0 : (int64_t) (size - sizeof(int));    // the record begins with its length
  memcpy(out, record + sizeof(int), (size_t) (bytes < capacity ? bytes : capacity));
  free(record);
  return bytes;
}

/* Give a fix the state that dpsim_fix_state returned of one with the same arguments. Returns -1 if there is no such fix. */
EXPORT int dpsim_fix_restore(void *lmp, const char *id, char *state)
{
  Fix *fix = static_cast<LAMMPS *>(lmp)->modify->get_fix_by_id(id);
  if (!fix) return -1;
  fix->restart(state);
  return 0;
}
