"""Layers, sequences and functions: sparse gamma DEF, deep Markov model, GP-LVM."""

import pyro
import pyro.contrib.gp as gp
import pyro.distributions as dist
import torch
from torch import nn
from torch.nn.functional import softplus

from zoo.entry import Case, entry


class SparseGammaDEF:
    def __init__(self, image_size=16, top_width=3, mid_width=4):
        self.top_width, self.mid_width, self.image_size = top_width, mid_width, image_size
        self.alpha_z, self.beta_z = torch.tensor(0.5), torch.tensor(0.5)
        self.alpha_w, self.beta_w = torch.tensor(0.3), torch.tensor(0.3)

    def model(self, x):
        x_size = x.size(0)
        with pyro.plate("w_top_plate", self.top_width * self.mid_width):
            w_top = pyro.sample("w_top", dist.Gamma(self.alpha_w, self.beta_w))
        with pyro.plate("w_bottom_plate", self.mid_width * self.image_size):
            w_bottom = pyro.sample("w_bottom", dist.Gamma(self.alpha_w, self.beta_w))
        with pyro.plate("data", x_size):
            z_top = pyro.sample("z_top", dist.Gamma(self.alpha_z, self.beta_z).expand([self.top_width]).to_event(1))
            w_top = w_top.reshape(self.top_width, self.mid_width)
            mean_mid = torch.matmul(z_top, w_top)
            z_mid = pyro.sample("z_mid", dist.Gamma(self.alpha_z, self.beta_z / mean_mid).to_event(1))
            w_bottom = w_bottom.reshape(self.mid_width, self.image_size)
            mean_obs = torch.matmul(z_mid, w_bottom)
            pyro.sample("obs", dist.Poisson(mean_obs).to_event(1), obs=x)

    def guide(self, x):
        x_size = x.size(0)

        def table(name, *shape):
            alpha = pyro.param(f"log_alpha_{name}", lambda: 0.5 + 0.1 * torch.randn(shape))
            mean = pyro.param(f"log_mean_{name}", lambda: 0.1 * torch.randn(shape))
            return softplus(alpha), softplus(mean)

        def sample_zs(name, width):
            alpha_z_q, mean_z_q = table(f"z_{name}", x_size, width)
            pyro.sample(f"z_{name}", dist.Gamma(alpha_z_q, alpha_z_q / mean_z_q).to_event(1))

        def sample_ws(name, width):
            alpha_w_q, mean_w_q = table(f"w_{name}", width)
            pyro.sample(f"w_{name}", dist.Gamma(alpha_w_q, alpha_w_q / mean_w_q))

        with pyro.plate("w_top_plate", self.top_width * self.mid_width):
            sample_ws("top", self.top_width * self.mid_width)
        with pyro.plate("w_bottom_plate", self.mid_width * self.image_size):
            sample_ws("bottom", self.mid_width * self.image_size)
        with pyro.plate("data", x_size):
            sample_zs("top", self.top_width)
            sample_zs("mid", self.mid_width)


@entry(
    "sparse gamma DEF",
    after="Pyro example: sparse gamma deep exponential family",
    plate="data",
    know="a guide of tables cannot be certified on simulated points by itself: a search takes its place",
)
def sparse_gamma():
    net = SparseGammaDEF()
    return Case(net.model, net.guide, (torch.poisson(2 * torch.rand(12, 16)),))


class DMM(nn.Module):
    """A nonlinear state space model of sequences of different lengths; a recurrent network reads them backwards."""

    def __init__(self, input_dim=3, z_dim=2, rnn_dim=8):
        super().__init__()
        self.trans = nn.Linear(z_dim, 2 * z_dim)
        self.emitter = nn.Linear(z_dim, input_dim)
        self.rnn = nn.RNN(input_dim, rnn_dim, batch_first=True)
        self.combiner_in, self.combiner_out = nn.Linear(z_dim, rnn_dim), nn.Linear(rnn_dim, 2 * z_dim)
        self.z_0, self.z_q_0 = nn.Parameter(torch.zeros(z_dim)), nn.Parameter(torch.zeros(z_dim))
        self.h_0 = nn.Parameter(torch.zeros(1, 1, rnn_dim))

    def model(self, mini_batch, mini_batch_reversed, mini_batch_mask, mini_batch_seq_lengths, annealing_factor=1.0):
        T_max = mini_batch.size(1)
        pyro.module("dmm", self)
        z_prev = self.z_0.expand(mini_batch.size(0), self.z_0.size(0))
        with pyro.plate("z_minibatch", len(mini_batch)):
            for t in pyro.markov(range(1, T_max + 1)):
                loc, raw_scale = self.trans(z_prev).chunk(2, -1)
                with pyro.poutine.scale(scale=annealing_factor):
                    prior = dist.Normal(loc, softplus(raw_scale)).mask(mini_batch_mask[:, t - 1 : t]).to_event(1)
                    z_t = pyro.sample(f"z_{t}", prior)
                emission = dist.Bernoulli(torch.sigmoid(self.emitter(z_t))).mask(mini_batch_mask[:, t - 1 : t])
                pyro.sample(f"obs_x_{t}", emission.to_event(1), obs=mini_batch[:, t - 1, :])
                z_prev = z_t

    def guide(self, mini_batch, mini_batch_reversed, mini_batch_mask, mini_batch_seq_lengths, annealing_factor=1.0):
        T_max = mini_batch.size(1)
        pyro.module("dmm", self)
        h_0 = self.h_0.expand(1, mini_batch.size(0), self.rnn.hidden_size).contiguous()
        rnn_output, _ = self.rnn(mini_batch_reversed, h_0)
        rnn_output = unpack_and_reverse(rnn_output, mini_batch_seq_lengths)
        z_prev = self.z_q_0.expand(mini_batch.size(0), self.z_q_0.size(0))
        with pyro.plate("z_minibatch", len(mini_batch)):
            for t in pyro.markov(range(1, T_max + 1)):
                hidden = 0.5 * (torch.tanh(self.combiner_in(z_prev)) + rnn_output[:, t - 1, :])
                loc, raw_scale = self.combiner_out(hidden).chunk(2, -1)
                with pyro.poutine.scale(scale=annealing_factor):
                    z_dist = dist.Normal(loc, softplus(raw_scale)).mask(mini_batch_mask[:, t - 1 : t]).to_event(1)
                    z_prev = pyro.sample(f"z_{t}", z_dist)


def reverse_sequences(mini_batch, seq_lengths):
    """The time steps of each sequence backwards, its padding where it was."""
    reversed_batch = torch.zeros_like(mini_batch)
    for b, length in enumerate(seq_lengths.tolist()):
        reversed_batch[b, :length] = mini_batch[b, :length].flip(0)
    return reversed_batch


def unpack_and_reverse(rnn_output, seq_lengths):
    padded, _ = nn.utils.rnn.pad_packed_sequence(rnn_output, batch_first=True)
    return reverse_sequences(padded, seq_lengths)


@entry(
    "ragged deep Markov model",
    after="Pyro example: deep Markov model, packed sequences",
    plate="z_minibatch",
    diagnose="diagnose points with the same latents (sequences of one length) at a time",
    know="ELBOs and `compare` take the masks",
)
def deep_markov():
    lengths = torch.tensor([5, 5, 4, 4, 4, 3, 3, 3, 2, 2])
    batch = torch.bernoulli(0.4 * torch.ones(10, 5, 3))
    mask = (torch.arange(5) < lengths[:, None]).float()
    batch = batch * mask[..., None]
    backwards = nn.utils.rnn.pack_padded_sequence(reverse_sequences(batch, lengths), lengths, batch_first=True)
    net = DMM()
    return Case(net.model, net.guide, (batch, backwards, mask.bool(), lengths))


@entry(
    "GP-LVM",
    after="Pyro tutorial: Gaussian process latent variable model",
    plate="data",
    compare="expected data as an argument of the model",
    diagnose="expected data as an argument of the model",
    know="a Gaussian process ties all points together: there is no plate",
)
def gplvm():
    y = torch.randn(4, 10)
    mean = torch.linspace(0, 1, 10)[:, None]
    kernel = gp.kernels.RBF(input_dim=1, lengthscale=torch.ones(1))
    net = gp.models.SparseGPRegression(
        mean.clone(), y, kernel, mean[::3].clone(), noise=torch.tensor(0.01), jitter=1e-5
    )
    net.X = pyro.nn.PyroSample(dist.Normal(mean, 0.1).to_event())
    net.autoguide("X", dist.Normal)
    return Case(net.model, net.guide, ())
