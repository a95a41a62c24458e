"""The paper's evaluation protocols, one file each: pure measurements on given models and data."""
