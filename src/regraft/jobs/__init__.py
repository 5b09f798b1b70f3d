"""One job from its config to a result folder; verbs and recipes start the same ones."""
