"""Wrong implementations of the model's parts."""

from mutants.mutant import Mutant


def transposed_linear(d_in, d_out, weights, in_features):
    return in_features @ weights


MUTANTS = [
    Mutant("linear", "transposed", {"run_linear": transposed_linear}, "used as \\(in, out\\)"),
]
