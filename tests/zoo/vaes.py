"""Variational autoencoders: plain, conditional, with a flow for a prior, and of counts."""

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as transforms
import torch
from torch import nn

from zoo.entry import Case, entry

PIXELS = 36


def binary_images(num, classes=3):
    """Noisy copies of a few patterns, and which."""
    patterns = torch.rand(classes, PIXELS).lt(0.4).float()
    labels = torch.randint(classes, (num,))
    return torch.bernoulli(0.1 + 0.8 * patterns[labels]), labels


class Encoder(nn.Module):
    def __init__(self, z_dim, hidden_dim, inputs=PIXELS):
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden_dim)
        self.fc21 = nn.Linear(hidden_dim, z_dim)
        self.fc22 = nn.Linear(hidden_dim, z_dim)

    def forward(self, x):
        hidden = nn.functional.softplus(self.fc1(x.flatten(1)))
        return self.fc21(hidden), torch.exp(self.fc22(hidden))


class Decoder(nn.Module):
    def __init__(self, z_dim, hidden_dim, outputs=PIXELS):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(z_dim, hidden_dim), nn.Softplus(), nn.Linear(hidden_dim, outputs))

    def forward(self, z):
        return torch.sigmoid(self.layers(z))


class VAE(nn.Module):
    def __init__(self, z_dim=3, hidden_dim=16):
        super().__init__()
        self.encoder = Encoder(z_dim, hidden_dim)
        self.decoder = Decoder(z_dim, hidden_dim)
        self.z_dim = z_dim

    def model(self, x):
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", x.shape[0]):
            z_loc = torch.zeros(x.shape[0], self.z_dim, dtype=x.dtype, device=x.device)
            z_scale = torch.ones(x.shape[0], self.z_dim, dtype=x.dtype, device=x.device)
            z = pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))
            loc_img = self.decoder(z)
            pyro.sample("obs", dist.Bernoulli(loc_img, validate_args=False).to_event(1), obs=x.reshape(-1, PIXELS))
            return loc_img

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", x.shape[0]):
            z_loc, z_scale = self.encoder(x)
            pyro.sample("latent", dist.Normal(z_loc, z_scale).to_event(1))


@entry("VAE", after="Pyro example: VAE", plate="data")
def vae():
    images = binary_images(20)[0].reshape(20, 1, 6, 6)
    net = VAE()
    return Case(net.model, net.guide, (images,))


class CVAE(nn.Module):
    """The hidden half of an image, given the other half."""

    def __init__(self, z_dim=2, hidden_dim=16):
        super().__init__()
        self.baseline_net = nn.Sequential(nn.Linear(PIXELS, hidden_dim), nn.ReLU(), nn.Linear(hidden_dim, PIXELS))
        self.prior_net = Encoder(z_dim, hidden_dim, 2 * PIXELS)
        self.recognition_net = Encoder(z_dim, hidden_dim, 2 * PIXELS)
        self.generation_net = Decoder(z_dim, hidden_dim)

    def model(self, xs, ys=None):
        pyro.module("generation_net", self)
        batch_size = xs.shape[0]
        with pyro.plate("data"):
            with torch.no_grad():
                y_hat = torch.sigmoid(self.baseline_net(xs))
            zs = pyro.sample("z", dist.Normal(*self.prior_net(torch.cat((xs, y_hat), -1))).to_event(1))
            loc = self.generation_net(zs)
            if ys is None:
                pyro.deterministic("y", loc.detach())
            else:
                mask_loc = loc[xs == -1].view(batch_size, -1)
                mask_ys = ys[xs == -1].view(batch_size, -1)
                pyro.sample("y", dist.Bernoulli(mask_loc, validate_args=False).to_event(1), obs=mask_ys)
            return loc

    def guide(self, xs, ys=None):
        with pyro.plate("data"):
            if ys is None:
                y_hat = torch.sigmoid(self.baseline_net(xs))
                loc, scale = self.prior_net(torch.cat((xs, y_hat), -1))
            else:
                loc, scale = self.recognition_net(torch.cat((xs, ys), -1))
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))


@entry(
    "conditional VAE",
    after="Pyro example: conditional VAE",
    plate="data",
    know="its plate has no size: it takes that of the data",
)
def conditional():
    ys = binary_images(16)[0]
    xs = ys.clone()
    xs[:, PIXELS // 2 :] = -1
    net = CVAE()
    return Case(net.model, net.guide, (xs, ys))


class FlowPriorVAE(nn.Module):
    def __init__(self, z_dim=2):
        super().__init__()
        self.z_dim = z_dim
        self.encoder = Encoder(z_dim, 16)
        self.decoder = Decoder(z_dim, 16)
        self.couplings = nn.ModuleList([transforms.affine_coupling(z_dim, [8]) for _ in range(2)])

    def prior(self):
        base = dist.Normal(torch.zeros(self.z_dim), torch.ones(self.z_dim)).to_event(1)
        first, second = self.couplings
        return dist.TransformedDistribution(base, [first, transforms.Permute(torch.arange(self.z_dim).flip(0)), second])

    def model(self, batch):
        pyro.module("flow_vae", self)
        with pyro.plate("images", len(batch)):
            code = pyro.sample("code", self.prior())
            pyro.sample("pixels", dist.Bernoulli(self.decoder(code)).to_event(1), obs=batch)

    def guide(self, batch):
        pyro.module("flow_vae", self)
        with pyro.plate("images", len(batch)):
            pyro.sample("code", dist.Normal(*self.encoder(batch)).to_event(1))


@entry("flow prior", after="Chen et al. (2017), a VAE whose prior is a flow", plate="images")
def flow_prior():
    net = FlowPriorVAE()
    return Case(net.model, net.guide, (binary_images(16)[0],))


class CountVAE(nn.Module):
    """Counts of genes in cells of several batches, a dictionary of tensors as a data loader gives it."""

    def __init__(self, n_genes, n_batches, n_latent=2, n_hidden=16):
        super().__init__()
        self.n_batches, self.n_latent = n_batches, n_latent
        self.z_encoder = Encoder(n_latent, n_hidden, n_genes + n_batches)
        self.decoder = nn.Sequential(
            nn.Linear(n_latent + n_batches, n_hidden), nn.ReLU(), nn.Linear(n_hidden, n_genes), nn.Softmax(-1)
        )

    def model(self, tensors, kl_weight=1.0):
        pyro.module("scvi", self)
        counts, batch = tensors["X"], tensors["batch"]
        theta = pyro.param("px_r", torch.ones(counts.shape[1]), constraint=dist.constraints.positive)
        library = counts.sum(-1, keepdim=True)
        with pyro.plate("cells", counts.shape[0]):
            with pyro.poutine.scale(scale=kl_weight):
                z = pyro.sample("z", dist.Normal(torch.zeros(self.n_latent), 1.0).to_event(1))
            one_hot = nn.functional.one_hot(batch, self.n_batches).float()
            rate = library * self.decoder(torch.cat((z, one_hot), -1))
            nb = dist.NegativeBinomial(total_count=theta, logits=(rate + 1e-6).log() - theta.log())
            pyro.sample("X", nb.to_event(1), obs=counts)

    def guide(self, tensors, kl_weight=1.0):
        pyro.module("scvi", self)
        counts, batch = tensors["X"], tensors["batch"]
        with pyro.plate("cells", counts.shape[0]), pyro.poutine.scale(scale=kl_weight):
            one_hot = nn.functional.one_hot(batch, self.n_batches).float()
            loc, scale = self.z_encoder(torch.cat((torch.log1p(counts), one_hot), -1))
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))


def cells():
    rate = 8 * torch.rand(24, 12).pow(3)
    return {"X": torch.poisson(rate * torch.rand(24, 1).add(0.5)), "batch": torch.arange(24) % 2}


@entry(
    "negative-binomial VAE",
    after="scvi-tools: scVI, written for Pyro",
    plate="cells",
    know="the data are a dictionary; `encoder_input=` for raw counts in the thousands",
)
def negative_binomial():
    net = CountVAE(n_genes=12, n_batches=2)
    return Case(net.model, net.guide, (cells(),))


@entry(
    "warmed-up VAE",
    after="scvi-tools: a weight of the KL that rises, left at 0.5",
    plate="cells",
    compare="with a scale of 0.5: log p(x) is then something else",
    diagnose="with a scale of 0.5: log p(x) is then something else",
    know="pass `kl_weight=1.0`",
)
def warmed_up():
    net = CountVAE(n_genes=12, n_batches=2)
    return Case(net.model, net.guide, (cells(),), {"kl_weight": 0.5})
