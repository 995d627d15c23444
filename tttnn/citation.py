"""How the method is cited, in the cards that the library writes."""

CITATION = """@inproceedings{hardt2024testtime,
    title = {Test-Time Training on Nearest Neighbors for Large Language Models},
    author = {Hardt, Moritz and Sun, Yu},
    booktitle = {International Conference on Learning Representations},
    year = {2024},
    url = {https://arxiv.org/abs/2305.18466},
}"""
