// File: commands.h
//
// The subcommands of the nfold program, one function per command, each in
// its own file. main.cc calls them all.
//
//   void add_greet_command(CLI::App& app) {
//     auto* command = app.add_subcommand("greet", "Say hello");
//     auto name = std::make_shared<std::string>();
//     command->add_option("--name", *name, "Who")->required();
//     command->callback([name] { greet(*name); });
//   }
//
// A callback reports by what it raises:
//   nothing                 exit code 0
//   CLI::ValidationError,   wrong use: CLI11's text, exit code 2
//     any CLI::ParseError
//   CLI::RuntimeError(n)    exit code n and no text: all has been said
//   any other exception     "nfold: error: TEXT" without a stack trace, 1
#pragma once

#include <CLI/CLI.hpp>

namespace nfold::train {

void add_train_command(CLI::App& app);
void add_generate_command(CLI::App& app);
void add_launch_command(CLI::App& app);
void add_doctor_command(CLI::App& app);
void add_mesh_command(CLI::App& app);
void add_bench_command(CLI::App& app);

}  // namespace nfold::train
