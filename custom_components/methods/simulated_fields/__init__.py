"""Registration learned from simulated fields, whose answers are known exactly (Eppenhof & Pluim, 2019)."""
