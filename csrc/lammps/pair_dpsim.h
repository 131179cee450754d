/* pair_style dpsim: students (tabulated models) in LAMMPS, over dpsim's C interface. docs/lammps.md says how to use it.
 *
 * Energy, forces and virial are those of the first model; with several models the spread of all of them, the model
 * deviation, is evaluated every out_freq steps. Forces on ghost atoms travel home by LAMMPS's own reverse
 * communication (newton on). The library is opened at run time: this file needs LAMMPS, MPI and dpsim.h only.
 */
#ifndef LMP_PAIR_DPSIM_H
#define LMP_PAIR_DPSIM_H

#include <cstdint>
#include <cstdio>
#include <string>
#include <vector>

#include "dpsim.h"
#include "pair.h"

namespace LAMMPS_NS {

class PairDpsim : public Pair {
 public:
  explicit PairDpsim(LAMMPS *);
  ~PairDpsim() override;

  void settings(int, char **) override;
  void coeff(int, char **) override;
  void init_style() override;
  double init_one(int, int) override;
  void compute(int, int) override;
  void *extract_peratom(const char *, int &) override;
  double memory_usage() override;

  int pack_reverse_comm(int, int, double *) override;
  void unpack_reverse_comm(int, int *, double *) override;

  void write_restart(FILE *) override;
  void read_restart(FILE *) override;
  void write_restart_settings(FILE *) override;
  void read_restart_settings(FILE *) override;

 private:
  struct Model {
    std::string path;
    dpsim_student *student = nullptr;
    dpsim_workspace *workspace = nullptr;
    std::vector<int32_t> type;     // the model's type of each LAMMPS type (from 1), -1 for NULL
    std::vector<int32_t> types;    // of each atom that takes part
    std::vector<double> forces;    // (n_all, 3) eV/A
    double virial[9] = {};         // eV
    bool knows_list = false;       // whether the workspace has seen the present neighbour list
  };

  void load_models();
  void close_models();
  void allocate();
  void map_elements();
  void check_masses();
  void find_first_atom();
  void update_list();
  void evaluate(Model &, double *energy, double *atom_energy, bool virial, double *atom_virial);
  void accumulate(const Model &, double energy);
  void deviation();
  void write_deviation(const double *found);
  void warn_below_range(const Model &, int64_t pairs);
  [[noreturn]] void report_not_finite(const Model &);
  [[noreturn]] void fail(const std::string &what);
  std::string read_text(FILE *);

  // settings
  std::vector<Model> models;
  std::vector<std::string> names;    // element of each LAMMPS type (from 1), "NULL" for none
  int precision = DPSIM_PRECISION_FILE;
  int threads = 0;    // 0: LAMMPS's number
  int out_freq = 100;
  std::string out_file = "model_devi.out";
  double relative = 0.0, relative_v = 0.0;    // LAMMPS's units; 0: the deviation is absolute
  bool loaded = false;     // whether the models are open
  bool some_null = false;  // whether some type is NULL, so that not all atoms take part
  double scale = 1.0;      // 1 eV in LAMMPS's unit of energy

  // the atoms that take part and their neighbours, renewed with LAMMPS's list
  int n_local = 0, n_all = 0, listed_atoms = -1;
  std::vector<int> atoms;    // their indices in LAMMPS, if some_null
  std::vector<int64_t> offsets;
  std::vector<int32_t> neighbors;
  std::vector<double> positions;    // if some_null
  std::vector<double> atom_energies, atom_virials;
  int first_type = 1;    // LAMMPS type of the first atom of the system
  bool first_type_known = false;
  bool warned = false;

  // model deviation
  std::vector<double> deviations;    // of the force on each owned atom
  double *reversing = nullptr;       // what a reverse communication sums
  FILE *deviation_file = nullptr;
  bool append = false;
  bigint last_row = -1;
};

}    // namespace LAMMPS_NS

#endif
