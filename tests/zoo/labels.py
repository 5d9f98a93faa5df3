"""Models with labels: semi-supervised, of single cells, and of a treatment's effect."""

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import config_enumerate
from torch import nn

from zoo.entry import Case, Exact, entry
from zoo.vaes import PIXELS, Encoder, binary_images


class SSVAE(nn.Module):
    def __init__(self, output_size=3, z_dim=2, hidden=16):
        super().__init__()
        self.output_size, self.z_dim = output_size, z_dim
        self.encoder_y = nn.Sequential(nn.Linear(PIXELS, hidden), nn.Softplus(), nn.Linear(hidden, output_size))
        self.encoder_z = Encoder(z_dim, hidden, PIXELS + output_size)
        self.decoder = nn.Sequential(nn.Linear(z_dim + output_size, hidden), nn.Softplus(), nn.Linear(hidden, PIXELS))

    def model(self, xs, ys=None):
        pyro.module("ss_vae", self)
        batch_size = xs.size(0)
        options = dict(dtype=xs.dtype, device=xs.device)
        with pyro.plate("data"):
            prior_loc = torch.zeros(batch_size, self.z_dim, **options)
            prior_scale = torch.ones(batch_size, self.z_dim, **options)
            zs = pyro.sample("z", dist.Normal(prior_loc, prior_scale).to_event(1))
            alpha_prior = torch.ones(batch_size, self.output_size, **options) / self.output_size
            ys = pyro.sample("y", dist.OneHotCategorical(alpha_prior), obs=ys)
            parts = torch.broadcast_tensors(zs[..., :1], ys[..., :1])[0].shape[:-1]
            both = torch.cat((zs.expand(*parts, -1), ys.expand(*parts, -1)), -1)
            loc = torch.sigmoid(self.decoder(both))
            pyro.sample("x", dist.Bernoulli(loc, validate_args=False).to_event(1), obs=xs)
            return loc

    def guide(self, xs, ys=None):
        with pyro.plate("data"):
            if ys is None:
                alpha = torch.softmax(self.encoder_y(xs), -1)
                ys = pyro.sample("y", dist.OneHotCategorical(alpha))
            loc, scale = self.encode(xs, ys)
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    def encode(self, xs, ys):
        both = torch.cat((xs.expand(*ys.shape[:-1], -1), ys), -1)
        loc, scale = self.encoder_z(both.reshape(-1, both.shape[-1]))
        return loc.reshape(*ys.shape[:-1], -1), scale.reshape(*ys.shape[:-1], -1)


@entry(
    "semi-supervised VAE, labelled",
    after="Pyro example: semi-supervised VAE (M2), with labels",
    plate="data",
    know="the labels are an argument",
)
def labelled():
    xs, ys = binary_images(18)
    net = SSVAE()
    return Case(net.model, net.guide, (xs, nn.functional.one_hot(ys, 3).float()))


@entry(
    "semi-supervised VAE, unlabelled",
    after="Pyro example: semi-supervised VAE (M2), without labels",
    plate="data",
    compare="mark it infer={'enumerate': 'parallel'} to have it summed out",
    diagnose="mark it infer={'enumerate': 'parallel'} to have it summed out",
    know="the author enumerates in the guide alone; see the next row",
)
def unlabelled():
    net = SSVAE()
    guide = config_enumerate(net.guide, "parallel", expand=True)
    return Case(net.model, guide, (binary_images(18)[0],))


@entry(
    "semi-supervised VAE, enumerated",
    after="the same, its label enumerated in the model too",
    plate="data",
    diagnose="leave it out of the guide, so that both are of z alone",
    know="`compare` sums the label out; a guide that draws it has gaps of another posterior",
)
def enumerated():
    net = SSVAE()
    return Case(config_enumerate(net.model, "parallel"), config_enumerate(net.guide), (binary_images(18)[0],))


class SCANVI(nn.Module):
    """Two latents above each other, a cell's type between them, and its library size."""

    def __init__(self, num_genes, num_labels, l_loc, l_scale, latent_dim=2, alpha=0.1, scale_factor=1.0):
        super().__init__()
        self.num_genes, self.num_labels, self.latent_dim = num_genes, num_labels, latent_dim
        self.l_loc, self.l_scale, self.alpha, self.scale_factor = l_loc, l_scale, alpha, scale_factor
        self.z2_decoder = Encoder(latent_dim, 16, latent_dim + num_labels)
        self.x_decoder = nn.Sequential(nn.Linear(latent_dim, 16), nn.ReLU(), nn.Linear(16, 2 * num_genes))
        self.z2l_encoder = nn.Sequential(nn.Linear(num_genes, 16), nn.ReLU(), nn.Linear(16, 2 * latent_dim + 2))
        self.classifier = nn.Sequential(nn.Linear(latent_dim, 16), nn.ReLU(), nn.Linear(16, num_labels))
        self.z1_encoder = Encoder(latent_dim, 16, latent_dim + num_labels)

    def joined(self, net, z, y):
        shape = torch.broadcast_shapes(z.shape[:-1], y.shape[:-1])
        both = torch.cat((z.expand(*shape, -1), y.expand(*shape, -1)), -1)
        return (part.reshape(*shape, -1) for part in net(both.reshape(-1, both.shape[-1])))

    def model(self, x, y=None):
        pyro.module("scanvi", self)
        theta = pyro.param(
            "inverse_dispersion", 10.0 * x.new_ones(self.num_genes), constraint=dist.constraints.positive
        )
        with pyro.plate("batch", len(x)), pyro.poutine.scale(scale=self.scale_factor):
            z1 = pyro.sample("z1", dist.Normal(0, x.new_ones(self.latent_dim)).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(logits=x.new_zeros(self.num_labels)), obs=y)
            z2_loc, z2_scale = self.joined(self.z2_decoder, z1, y)
            z2 = pyro.sample("z2", dist.Normal(z2_loc, z2_scale).to_event(1))
            size = pyro.sample("l", dist.LogNormal(self.l_loc, self.l_scale * x.new_ones(1)).to_event(1))
            gate_logits, mu = self.x_decoder(z2).chunk(2, -1)
            nb_logits = (size * torch.softmax(mu, -1) + 1e-4).log() - (theta + 1e-4).log()
            x_dist = dist.ZeroInflatedNegativeBinomial(gate_logits=gate_logits, total_count=theta, logits=nb_logits)
            pyro.sample("x", x_dist.to_event(1), obs=x)

    def guide(self, x, y=None):
        pyro.module("scanvi", self)
        with pyro.plate("batch", len(x)), pyro.poutine.scale(scale=self.scale_factor):
            found = self.z2l_encoder(torch.log1p(x))
            z2_loc, z2_scale, l_loc, l_scale = found.split([self.latent_dim, self.latent_dim, 1, 1], -1)
            pyro.sample("l", dist.LogNormal(l_loc, nn.functional.softplus(l_scale)).to_event(1))
            z2 = pyro.sample("z2", dist.Normal(z2_loc, nn.functional.softplus(z2_scale)).to_event(1))
            y_dist = dist.OneHotCategorical(logits=self.classifier(z2))
            if y is None:
                y = pyro.sample("y", y_dist)
            else:
                classification_loss = y_dist.log_prob(y)
                pyro.factor("classification_loss", -self.alpha * classification_loss, has_rsample=False)
            z1_loc, z1_scale = self.joined(self.z1_encoder, z2, y)
            pyro.sample("z1", dist.Normal(z1_loc, z1_scale).to_event(1))


def scanvi(**options):
    counts = torch.poisson(6 * torch.rand(20, 10).pow(2))
    net = SCANVI(10, 3, l_loc=3.0, l_scale=0.5, **options)
    return net, counts, nn.functional.one_hot(torch.arange(20) % 3, 3).float()


@entry(
    "scANVI, labelled",
    after="Pyro tutorial: scANVI, labelled cells",
    plate="batch",
    diagnose="hide a term of the training loss from this call: pyro.poutine.block(guide, hide=['classification_loss'])",
    know="a classifier's loss is no part of q",
)
def scanvi_labelled():
    net, counts, labels = scanvi()
    return Case(net.model, net.guide, (counts, labels))


@entry(
    "scANVI, loss hidden",
    after="the same, the classifier's loss hidden",
    plate="batch",
    know="the row above, changed as its line says",
)
def scanvi_hidden():
    net, counts, labels = scanvi()
    return Case(net.model, pyro.poutine.block(net.guide, hide=["classification_loss"]), (counts, labels))


@entry(
    "scANVI, unlabelled",
    after="Pyro tutorial: scANVI, unlabelled cells",
    plate="batch",
    compare="mark it infer={'enumerate': 'parallel'} to have it summed out",
    diagnose="mark it infer={'enumerate': 'parallel'} to have it summed out",
    know="as the semi-supervised VAE",
)
def scanvi_unlabelled():
    net, counts, _ = scanvi()
    return Case(net.model, config_enumerate(net.guide, expand=True), (counts,))


@entry(
    "scANVI, scaled",
    after="Pyro tutorial: scANVI, with its scale factor",
    plate="batch",
    compare="with a scale of 0.005: log p(x) is then something else",
    diagnose="expected factors of a guide to be log densities of its draws",
    know="set the scale factor to 1, and hide the classifier's loss",
)
def scanvi_scaled():
    net, counts, labels = scanvi(scale_factor=1.0 / (20 * 10))
    return Case(net.model, net.guide, (counts, labels))


class CEVAE(nn.Module):
    """What a treatment t does to an outcome y, given covariates x that a hidden confounder z makes."""

    def __init__(self, feature_dim=4, latent_dim=2):
        super().__init__()
        self.latent_dim = latent_dim
        self.x_nn, self.t_nn = nn.Linear(latent_dim, feature_dim), nn.Linear(latent_dim, 1)
        self.y0_nn, self.y1_nn = nn.Linear(latent_dim, 1), nn.Linear(latent_dim, 1)
        self.qt_nn, self.qy_nn = nn.Linear(feature_dim, 1), nn.Linear(feature_dim + 1, 1)
        self.qz_nn = Encoder(latent_dim, 8, feature_dim + 2)

    def model(self, x, t=None, y=None, size=None):
        pyro.module("cevae", self)
        if size is None:
            size = x.size(0)
        with pyro.plate("data", size, subsample=x):
            z = pyro.sample("z", dist.Normal(0, x.new_ones(self.latent_dim)).to_event(1))
            pyro.sample("x", dist.Normal(self.x_nn(z), 0.5).to_event(1), obs=x)
            t = pyro.sample("t", dist.Bernoulli(logits=self.t_nn(z).squeeze(-1)), obs=t)
            mean = torch.where(t > 0.5, self.y1_nn(z).squeeze(-1), self.y0_nn(z).squeeze(-1))
            pyro.sample("y", dist.Normal(mean, 0.4), obs=y)

    def guide(self, x, t=None, y=None, size=None):
        pyro.module("cevae", self)
        if size is None:
            size = x.size(0)
        with pyro.plate("data", size, subsample=x):
            t = pyro.sample("t", self.t_dist(x), obs=t, infer={"is_auxiliary": True})
            y = pyro.sample("y", self.y_dist(t, x), obs=y, infer={"is_auxiliary": True})
            pyro.sample("z", self.z_dist(y, t, x))

    def t_dist(self, x):
        return dist.Bernoulli(logits=self.qt_nn(x).squeeze(-1))

    def y_dist(self, t, x):
        return dist.Normal(self.qy_nn(torch.cat((x, t[:, None]), -1)).squeeze(-1), 1.0)

    def z_dist(self, y, t, x):
        return dist.Normal(*self.qz_nn(torch.cat((x, t[:, None], y[:, None]), -1))).to_event(1)


@entry(
    "causal-effect VAE",
    after="pyro.contrib.cevae",
    plate="data",
    has_exact=True,
    know="`subsample=x` is taken; what the guide observes (`obs=t`) is not counted as log q",
)
def causal():
    confounder = torch.randn(24)
    x = confounder[:, None] * torch.ones(4) + 0.5 * torch.randn(24, 4)
    t = torch.bernoulli(torch.sigmoid(confounder))
    y = confounder + t + 0.3 * torch.randn(24)
    net = CEVAE()
    return Case(net.model, net.guide, (x, t, y), exact=lambda: Exact(causal_evidence(net, x, t, y)))


def causal_evidence(net, x, t, y, nodes=120):
    """Log p(x, t, y) by a grid over the two latents."""
    grid = torch.linspace(-6, 6, nodes, dtype=torch.float64)
    z = torch.cartesian_prod(grid, grid).float()
    with torch.no_grad():
        log_p = dist.Normal(0.0, 1.0).log_prob(z).sum(-1) + dist.Normal(net.x_nn(z), 0.5).log_prob(x[:, None]).sum(-1)
        log_p = log_p + dist.Bernoulli(logits=net.t_nn(z).squeeze(-1)).log_prob(t[:, None])
        mean = torch.where(t[:, None] > 0.5, net.y1_nn(z).squeeze(-1), net.y0_nn(z).squeeze(-1))
        log_p = log_p + dist.Normal(mean, 0.4).log_prob(y[:, None])
    return log_p.double().logsumexp(-1) + 2 * (grid[1] - grid[0]).log()
