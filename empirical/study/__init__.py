"""Do the implications that the TRS paper draws from its theorems hold across many trained ensembles?"""
