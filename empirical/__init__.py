"""Real ensembles: data, models, training, attacks, measured transfer, and its comparison with the theory."""
