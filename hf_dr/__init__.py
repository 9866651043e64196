"""Dataset Reinforcement for the Hugging Face ecosystem (Faghri et al., ICCV 2023, arXiv:2303.08983)."""

__version__ = "0.1.0"
