"""Everything together: `relais up` as its own process, spoken to only through the doors partners and clients use."""
