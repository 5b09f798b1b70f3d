"""The loss of AdaRand's means as it is printed, pair by pair."""


def prior_loss(mu, r, kind, intra=1.0, inter=1.0):
    k = len(mu)

    def cos(a, b):
        return a @ b / (a.norm() * b.norm())

    if kind == "repel":
        near = sum(1 - cos(mu[i], r[i]) for i in range(k)) / k
        far = sum(1 - cos(mu[i], mu[j]) for i in range(k) for j in range(k) if i != j)
        return intra * near - inter * far / (k * (k - 1))
    near = sum((cos(mu[i], r[i]) - 1) ** 2 for i in range(k)) / k
    far = sum(cos(mu[i], mu[j]) ** 2 for i in range(k) for j in range(k) if i != j)
    return intra * near + inter * far / (k * (k - 1))
