"""Few-shot learning: what is learned on other tasks. Meta-ticket, MAML and its relatives, and the bars."""

from .baseline import FrozenEncoder, logistic_regression
from .batchnorm import EpisodeNorm, Policy, episodic, with_statistics
from .episodes import Episodes, EpisodeSampler, labelled_tensors
from .learner import Learner, accuracy, head_name
from .linear_step import LinearLayer, adapted_logits, read_stack
from .maml import MAML, Clone
from .metaticket import FirstScores, MetaTicket
from .mgaug import MGAug
from .omniglot import omniglot, one_shot_runs
from .protonet import ProtoNet, prototypes
from .reptile import Reptile
from .sinusoid import Sinusoids

__all__ = [
    "MAML",
    "Clone",
    "EpisodeNorm",
    "EpisodeSampler",
    "Episodes",
    "FirstScores",
    "FrozenEncoder",
    "Learner",
    "LinearLayer",
    "MGAug",
    "MetaTicket",
    "Policy",
    "ProtoNet",
    "Reptile",
    "Sinusoids",
    "accuracy",
    "adapted_logits",
    "episodic",
    "head_name",
    "labelled_tensors",
    "logistic_regression",
    "omniglot",
    "one_shot_runs",
    "prototypes",
    "read_stack",
    "with_statistics",
]
