#include <fmt/format.h>

#include "train/commands.h"
#include "train/doctor.h"

namespace nfold::train {

void add_doctor_command(CLI::App& app) {
  CLI::App* command = app.add_subcommand(
      "doctor", "Show what this build and this machine offer");
  command->footer(
      "Exit code 1 if something that training needs does not work.");
  command->callback([] {
    const std::vector<Fact> facts = examine_machine();
    fmt::print("{}", format_facts(facts));
    if (has_fatal(facts)) throw CLI::RuntimeError(1);
  });
}

}  // namespace nfold::train
