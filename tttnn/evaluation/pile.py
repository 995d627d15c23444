"""The Pile as an evaluation: its 22 tasks, their weights, and which test documents are taken."""

import random
from collections.abc import Iterable

from tttnn.documents import Document
from tttnn.errors import InputError
from tttnn.records import DocumentRecord


# Task: its name in `meta.pile_set_name`, and its weight in percent.
# Source: The Pile (https://huggingface.co/papers/2101.00027), table 1; TTT-NN (https://huggingface.co/papers/2305.18466).
TASKS: dict[str, tuple[str, float]] = {
    "arxiv": ("ArXiv", 8.96),
    "bookcorpus2": ("BookCorpus2", 0.75),
    "books3": ("Books3", 12.07),
    "dm-mathematics": ("DM Mathematics", 1.24),
    "enron": ("Enron Emails", 0.14),
    "europarl": ("EuroParl", 0.73),
    "freelaw": ("FreeLaw", 6.12),
    "github": ("Github", 7.59),
    "gutenberg": ("Gutenberg (PG-19)", 2.17),
    "hackernews": ("HackerNews", 0.62),
    "nih-exporter": ("NIH ExPorter", 0.30),
    "opensubtitles": ("OpenSubtitles", 1.55),
    "openwebtext2": ("OpenWebText2", 10.01),
    "philpapers": ("PhilPapers", 0.38),
    "pile-cc": ("Pile-CC", 18.11),
    "pubmed-abstracts": ("PubMed Abstracts", 3.07),
    "pubmed-central": ("PubMed Central", 14.40),
    "stackexchange": ("StackExchange", 5.13),
    "ubuntu-irc": ("Ubuntu IRC", 0.88),
    "uspto": ("USPTO Backgrounds", 3.65),
    "wikipedia": ("Wikipedia (en)", 1.53),
    "youtubesubtitles": ("YoutubeSubtitles", 0.60),
}
TASK_OF_SET = {set_name: task for task, (set_name, _) in TASKS.items()}
SHUFFLE_SEED = 1216
TEST_FRACTION = 0.2

# Bits per byte after so many neighbors, by run and task. `gpt2-split` is GPT-2 under `query="prefix"`; the others
# score the query itself.
# Source: result files published with TTT-NN (https://huggingface.co/papers/2305.18466), MIT licence.
PUBLISHED_NEIGHBORS = (0, 1, 5, 10, 20, 50)
PUBLISHED: dict[str, dict[str, tuple[float, ...]]] = {
    "gpt2": {
        "arxiv": (1.3169, 1.2825, 1.2155, 1.1878, 1.1551, 1.1132),
        "bookcorpus2": (1.0679, 1.0613, 1.0739, 1.0761, 1.0772, 1.0839),
        "books3": (1.1761, 1.1563, 1.1504, 1.1468, 1.1317, 1.1298),
        "dm-mathematics": (1.5466, 1.5047, 1.3233, 1.2287, 1.149, 1.0763),
        "enron": (1.5117, 1.4177, 1.2731, 1.1723, 1.0555, 0.9085),
        "europarl": (2.3502, 2.1924, 1.8825, 1.7708, 1.5896, 1.3805),
        "freelaw": (1.04, 1.0029, 0.9493, 0.9229, 0.8945, 0.8606),
        "github": (1.9184, 1.3981, 1.0216, 0.8944, 0.7842, 0.6907),
        "gutenberg": (1.4045, 1.3048, 1.3078, 1.2981, 1.2865, 1.2681),
        "hackernews": (1.4262, 1.3648, 1.2966, 1.2741, 1.2568, 1.2329),
        "nih-exporter": (0.8956, 0.8921, 0.8709, 0.8509, 0.8272, 0.8063),
        "opensubtitles": (1.2685, 1.2282, 1.1219, 1.0724, 1.0345, 1.0392),
        "openwebtext2": (1.1089, 1.1059, 1.0946, 1.0825, 1.0646, 1.0406),
        "philpapers": (1.4106, 1.3822, 1.321, 1.2963, 1.2674, 1.2259),
        "pile-cc": (1.0831, 1.0781, 1.0651, 1.0551, 1.0396, 1.0218),
        "pubmed-abstracts": (0.9602, 0.9588, 0.9493, 0.9361, 0.9122, 0.8739),
        "pubmed-central": (1.0418, 1.018, 0.9809, 0.9525, 0.9259, 0.8932),
        "stackexchange": (1.2994, 1.2806, 1.1898, 1.1343, 1.0906, 1.0413),
        "ubuntu-irc": (1.396, 1.3333, 1.3489, 1.3133, 1.2591, 1.2225),
        "uspto": (0.8647, 0.8589, 0.8281, 0.7994, 0.7645, 0.7372),
        "wikipedia": (1.1266, 1.1157, 1.0732, 1.0395, 1.0027, 0.9563),
        "youtubesubtitles": (1.7985, 1.7554, 1.655, 1.648, 1.6125, 1.5763),
        "pile_all": (1.2079, 1.1487, 1.0872, 1.0573, 1.0249, 0.9922),
    },
    "gpt2-split": {
        "arxiv": (1.3253, 1.2908, 1.2214, 1.1946, 1.1597, 1.1187),
        "bookcorpus2": (1.0834, 1.0808, 1.0958, 1.1003, 1.0962, 1.1047),
        "books3": (1.1472, 1.1258, 1.1224, 1.1222, 1.1115, 1.1139),
        "dm-mathematics": (1.5635, 1.5211, 1.3383, 1.2428, 1.162, 1.0881),
        "enron": (1.5271, 1.3935, 1.261, 1.175, 1.0875, 0.9892),
        "europarl": (2.3202, 2.1576, 1.8486, 1.739, 1.5587, 1.3556),
        "freelaw": (1.0404, 1.0033, 0.9534, 0.9308, 0.9084, 0.8834),
        "github": (2.0753, 1.452, 1.058, 0.9351, 0.8393, 0.7611),
        "gutenberg": (1.3902, 1.2867, 1.2894, 1.2802, 1.2728, 1.2631),
        "hackernews": (1.4325, 1.372, 1.2992, 1.2766, 1.2619, 1.241),
        "nih-exporter": (0.9817, 0.979, 0.9623, 0.9459, 0.9244, 0.9024),
        "opensubtitles": (1.2667, 1.2273, 1.1209, 1.0731, 1.0377, 1.0366),
        "openwebtext2": (1.1635, 1.1602, 1.1489, 1.1371, 1.1203, 1.0975),
        "philpapers": (1.3664, 1.3393, 1.2769, 1.2559, 1.2354, 1.2076),
        "pile-cc": (1.1184, 1.1128, 1.1016, 1.0918, 1.0797, 1.0647),
        "pubmed-abstracts": (1.0689, 1.068, 1.0612, 1.0512, 1.0339, 1.0072),
        "pubmed-central": (1.0518, 1.0259, 0.9887, 0.9618, 0.9315, 0.8989),
        "stackexchange": (1.3679, 1.3486, 1.27, 1.222, 1.1794, 1.1272),
        "ubuntu-irc": (1.3977, 1.3336, 1.3515, 1.3119, 1.2448, 1.2493),
        "uspto": (0.9033, 0.8971, 0.8678, 0.8427, 0.8124, 0.7911),
        "wikipedia": (1.2117, 1.1997, 1.1514, 1.115, 1.0767, 1.0292),
        "youtubesubtitles": (1.8492, 1.8248, 1.6855, 1.6815, 1.6455, 1.6147),
        "pile_all": (1.2402, 1.1724, 1.1107, 1.0828, 1.0529, 1.0242),
    },
    "gpt2-large": {
        "arxiv": (1.141, 1.0959, 1.0486, 1.0446, 1.0179, 0.9881),
        "bookcorpus2": (0.9553, 0.9496, 0.9661, 0.9667, 0.9721, 0.9986),
        "books3": (1.0353, 1.0153, 1.0206, 1.0276, 1.0024, 1.0139),
        "dm-mathematics": (1.4263, 1.3223, 1.1344, 1.0734, 1.033, 0.9925),
        "enron": (1.4384, 1.2496, 1.0374, 0.8713, 0.7554, 0.7218),
        "europarl": (1.9633, 1.7531, 1.482, 1.4239, 1.2786, 1.1508),
        "freelaw": (0.8898, 0.8414, 0.7821, 0.7589, 0.7402, 0.7217),
        "github": (1.9538, 1.1582, 0.7265, 0.5941, 0.5244, 0.5065),
        "gutenberg": (1.2074, 1.1505, 1.2005, 1.1687, 1.1666, 1.1776),
        "hackernews": (1.2959, 1.1946, 1.1324, 1.1143, 1.1002, 1.0863),
        "nih-exporter": (0.7807, 0.7659, 0.6948, 0.6528, 0.6316, 0.6306),
        "opensubtitles": (1.1535, 1.0627, 0.7723, 0.6771, 0.6856, 0.7477),
        "openwebtext2": (0.9516, 0.9427, 0.9196, 0.9057, 0.8939, 0.8804),
        "philpapers": (1.2243, 1.1657, 1.1246, 1.1019, 1.093, 1.0675),
        "pile-cc": (0.9552, 0.9456, 0.9204, 0.9056, 0.8929, 0.8841),
        "pubmed-abstracts": (0.8166, 0.8132, 0.7921, 0.7729, 0.7528, 0.7361),
        "pubmed-central": (0.9038, 0.8703, 0.8499, 0.8381, 0.8154, 0.7893),
        "stackexchange": (1.0939, 1.0482, 0.9682, 0.9343, 0.9056, 0.877),
        "ubuntu-irc": (1.27, 1.1942, 1.2246, 1.2019, 1.148, 1.1294),
        "uspto": (0.7512, 0.7324, 0.6431, 0.5869, 0.5646, 0.5699),
        "wikipedia": (0.9773, 0.9599, 0.8996, 0.8615, 0.833, 0.8149),
        "youtubesubtitles": (1.5107, 1.4855, 1.4715, 1.4918, 1.4378, 1.4161),
        "pile_all": (1.0724, 0.9843, 0.9171, 0.8914, 0.8669, 0.8537),
    },
    "gpt-neo-1.3B": {
        "arxiv": (0.6727, 0.6697, 0.6636, 0.664, 0.6624, 0.6602),
        "bookcorpus2": (0.8969, 0.8888, 0.8899, 0.8909, 0.894, 0.9019),
        "books3": (0.9143, 0.9085, 0.9081, 0.9109, 0.9023, 0.9068),
        "dm-mathematics": (0.8223, 0.8224, 0.829, 0.8326, 0.8347, 0.8345),
        "enron": (0.6871, 0.6758, 0.6264, 0.5753, 0.5278, 0.5291),
        "europarl": (0.8575, 0.8601, 0.867, 0.8713, 0.8678, 0.8651),
        "freelaw": (0.571, 0.5698, 0.5649, 0.562, 0.5608, 0.5592),
        "github": (0.4383, 0.4214, 0.3636, 0.3343, 0.3237, 0.327),
        "gutenberg": (0.9774, 0.9811, 0.9909, 0.9933, 0.996, 1.0041),
        "hackernews": (0.9654, 0.9652, 0.9649, 0.9648, 0.9646, 0.9647),
        "nih-exporter": (0.6494, 0.6434, 0.6122, 0.5874, 0.568, 0.5629),
        "opensubtitles": (1.01, 0.9855, 0.8616, 0.7593, 0.7137, 0.73),
        "openwebtext2": (0.8395, 0.8379, 0.8313, 0.8253, 0.8189, 0.8127),
        "philpapers": (0.9539, 0.944, 0.9323, 0.9295, 0.9286, 0.927),
        "pile-cc": (0.8596, 0.8584, 0.8518, 0.8459, 0.8386, 0.8329),
        "pubmed-abstracts": (0.6449, 0.644, 0.6382, 0.6317, 0.6242, 0.618),
        "pubmed-central": (0.5822, 0.582, 0.583, 0.5838, 0.5842, 0.5839),
        "stackexchange": (0.6927, 0.692, 0.6885, 0.6855, 0.6828, 0.6794),
        "ubuntu-irc": (1.0204, 1.0159, 1.0254, 1.0228, 1.0139, 1.0097),
        "uspto": (0.5864, 0.5821, 0.5534, 0.5238, 0.4943, 0.4904),
        "wikipedia": (0.7549, 0.7534, 0.7455, 0.7392, 0.7333, 0.7281),
        "youtubesubtitles": (1.0505, 1.0481, 1.0416, 1.039, 1.0394, 1.0344),
        "pile_all": (0.7385, 0.7351, 0.7248, 0.7181, 0.7117, 0.7103),
    },
}


def parse_tasks(names: str | list[str]) -> list[str]:
    """
    Read a choice of tasks.

    Args:
        names (`str` or `list[str]`):
            `"all"`, or names of tasks, in a list or parted by commas.

    Returns:
        `list[str]`: the tasks, each once, in the order of `TASKS`.

    Raises:
        `ValueError`: If there is no task of a name.
    """
    wanted = [name.strip() for item in ([names] if isinstance(names, str) else names) for name in item.split(",")]
    unknown = [name for name in wanted if name not in TASKS and name != "all"]
    if unknown:
        raise InputError(f"There is no Pile task {unknown[0]!r}. Choose from: all, {', '.join(TASKS)}.")
    return [task for task in TASKS if "all" in wanted or task in wanted]


def task_of(document: Document | DocumentRecord) -> str:
    """
    Name the task that a document of the Pile belongs to.

    Args:
        document (`Document` or `DocumentRecord`):
            Its metadata hold `pile_set_name`.

    Returns:
        `str`: a key of `TASKS`.

    Raises:
        `ValueError`: If it has no `pile_set_name`, or an unknown one.
    """
    name = document.metadata.get("pile_set_name")
    if name not in TASK_OF_SET:
        raise InputError(
            f"Document '{document.id}' has the `pile_set_name` {name!r}, which is none of the Pile's. Rows of Pile "
            "files read "
            '{"text": ..., "meta": {"pile_set_name": ...}}.'
        )
    return TASK_OF_SET[name]


def select_documents(
    documents: Iterable[Document],
    tasks: list[str],
    fraction: float = TEST_FRACTION,
    limit: int | None = None,
) -> dict[str, list[Document]]:
    """
    Take the test documents that the method's authors took: of each task, shuffled, the first fifth.

    Args:
        documents (`Iterable[Document]`):
            A split of the Pile, in its order.
        tasks (`list[str]`):
            Keys of `TASKS`.
        fraction (`float`, *optional*, defaults to `0.2`):
            Share of a task's documents, rounded down.
        limit (`int`, *optional*):
            At most that many of each task.

    Returns:
        `dict[str, list[Document]]`: the documents of each task that has any, in the shuffled order.

    Raises:
        `ValueError`: If nothing is left of any task, a document is of no known task, or a number is out of range.

    Source: [TTT-NN](https://huggingface.co/papers/2305.18466) and its public code (`random.Random(1216)`).
    """
    if not 0 < fraction <= 1:
        raise InputError(f"`fraction` is {fraction}. Pass a share of each task's documents, above 0 and up to 1.")
    if limit is not None and limit < 1:
        raise InputError(f"`limit` is {limit}. Pass at least 1 document of each task.")
    by_task: dict[str, list[Document]] = {task: [] for task in tasks}
    for document in documents:
        task = task_of(document)
        if task in by_task:
            by_task[task].append(document)
    for task, found in by_task.items():
        random.Random(SHUFFLE_SEED).shuffle(found)
        by_task[task] = found[: int(fraction * len(found))][:limit]
    selected = {task: found for task, found in by_task.items() if found}
    if not selected:
        raise InputError(
            f"No document is left: the data holds none of the tasks {', '.join(tasks)}, or the fraction {fraction} of "
            "them is less than one document."
        )
    return selected


def pile_weights(tasks: Iterable[str]) -> tuple[str, dict[str, float]]:
    """
    Weigh tasks as the Pile does.

    Args:
        tasks (`Iterable[str]`):
            Keys of `TASKS`.

    Returns:
        `tuple[str, dict[str, float]]`: `"pile_all"` with the Pile's weights as shares where all 22 tasks are there,
        otherwise `"weighted_mean"` with those of the given tasks scaled to sum to 1.
    """
    weights = {task: TASKS[task][1] / 100 for task in tasks}
    if len(weights) == len(TASKS):
        return "pile_all", weights
    total = sum(weights.values())
    return "weighted_mean", {task: weight / total for task, weight in weights.items()}
