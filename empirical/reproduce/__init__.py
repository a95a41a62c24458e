"""The paper's tables and figures, measured anew at a named scale: `reproduce`."""
