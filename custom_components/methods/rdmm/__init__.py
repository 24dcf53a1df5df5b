"""RDMM (Shen et al., 2019) and metric learning (Niethammer et al., 2019): spatially varying metrics."""
