// File: data_command.h
//
// The commands `nfold data prepare` and what they print.
//
//   CLI::App app("nfold");
//   add_data_command(app);
//   CLI11_PARSE(app, argc, argv);
//
// The command runs while the arguments are parsed; its errors come out of
// parse() as prepare.h describes them.
#pragma once

#include <CLI/App.hpp>

namespace nfold::train {

void add_data_command(CLI::App& app);

}  // namespace nfold::train
