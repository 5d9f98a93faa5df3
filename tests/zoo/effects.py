"""A prior that is a mixture, a random effect beside a chain of states, and objects that may be there or not."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from zoo.entry import Case, entry


class VampPrior(nn.Module):
    """The prior is a mixture of what the encoder says of learned inputs."""

    def __init__(self, pixels=6, latents=2, pseudo=3):
        super().__init__()
        self.inputs = nn.Parameter(torch.rand(pseudo, pixels))
        self.encoder, self.decoder = nn.Linear(pixels, 2 * latents), nn.Linear(latents, pixels)

    def encode(self, x):
        loc, log_scale = self.encoder(x).chunk(2, -1)
        return dist.Normal(loc, log_scale.exp()).to_event(1)

    def model(self, x):
        pyro.module("vae", self)
        prior = dist.MixtureSameFamily(dist.Categorical(logits=torch.zeros(len(self.inputs))), self.encode(self.inputs))
        with pyro.plate("images", len(x)):
            z = pyro.sample("latent", prior)
            pyro.sample("pixels", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        pyro.module("vae", self)
        with pyro.plate("images", len(x)):
            pyro.sample("latent", self.encode(x))


@entry(
    "VampPrior",
    after="Tomczak & Welling (2018): a VAE whose prior is a mixture of posteriors",
    plate="images",
    know="`MixtureSameFamily` is a prior like others",
)
def vamp_prior():
    vae = VampPrior()
    return Case(vae.model, vae.guide, (torch.rand(12, 6).round(),))


STAY = torch.tensor([[0.8, 0.2], [0.3, 0.7]])


def tracks(steps):
    with pyro.plate("individuals", len(steps), dim=-1):
        effect = pyro.sample("effect", dist.Normal(0.0, 1.0))
        state = torch.tensor(0)
        for t in pyro.markov(range(steps.shape[1])):
            state = pyro.sample(f"state_{t}", dist.Categorical(STAY[state]), infer={"enumerate": "parallel"})
            pyro.sample(f"step_{t}", dist.Normal(effect + 2.0 * state, 0.8), obs=steps[:, t])


def tracks_guide(steps):
    weight = pyro.param("weight", torch.tensor(0.7))
    with pyro.plate("individuals", len(steps), dim=-1):
        pyro.sample("effect", dist.Normal(weight * steps.mean(-1), 0.4))


@entry(
    "mixed hidden Markov model",
    after="Pyro example: mixed HMM, a random effect for each individual",
    plate="individuals",
    know="the chain of states is summed out; each column is simulated given those before it",
)
def mixed_hmm():
    return Case(tracks, tracks_guide, (torch.randn(10, 4),))


def scene(images):
    with pyro.plate("data", len(images)):
        here, total = torch.ones(len(images)), torch.zeros(len(images))
        for t in range(2):
            here = pyro.sample(f"z_pres_{t}", dist.Bernoulli(0.5 * here))
            what = pyro.sample(f"z_what_{t}", dist.Normal(torch.zeros(len(images)), 1.0).mask(here.bool()))
            total = total + here * what
        pyro.sample("obs", dist.Normal(total[:, None].expand(images.shape), 0.5).to_event(1), obs=images)


@entry(
    "attend, infer, repeat",
    after="Pyro example: AIR, objects that may be there or not",
    plate="data",
    compare="marginalize it or observe it",
    diagnose="marginalize it or observe it",
    know="whether an object is there is discrete, and decides which latents there are",
)
def air():
    return Case(scene, scene_guide, (torch.randn(10, 4),))


def scene_guide(images):
    with pyro.plate("data", len(images)):
        here = torch.ones(len(images))
        for t in range(2):
            here = pyro.sample(f"z_pres_{t}", dist.Bernoulli(0.5 * here))
            pyro.sample(f"z_what_{t}", dist.Normal(torch.zeros(len(images)), 1.0).mask(here.bool()))
