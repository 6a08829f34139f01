mod mutants;
mod rules;
