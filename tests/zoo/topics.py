"""Words and their topics."""

import functools

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import config_enumerate
from torch import nn

from zoo.entry import Case, entry


class Args:
    """What the example parses from its command line."""

    num_words, num_topics, num_docs, num_words_per_doc = 15, 3, 12, 9


def documents(args):
    topics = dist.Dirichlet(0.3 * torch.ones(args.num_words)).sample((args.num_topics,))
    mixed = dist.Dirichlet(0.5 * torch.ones(args.num_topics)).sample((args.num_docs,)) @ topics
    return dist.Categorical(mixed).sample((args.num_words_per_doc,))  # (words, documents)


@config_enumerate
def lda_model(data=None, args=None, batch_size=None):
    with pyro.plate("topics", args.num_topics):
        pyro.sample("topic_weights", dist.Gamma(1.0 / args.num_topics, 1.0))
        topic_words = pyro.sample("topic_words", dist.Dirichlet(torch.ones(args.num_words) / args.num_words))
    with pyro.plate("documents", args.num_docs) as ind:
        if data is not None:
            data = data[:, ind]
        doc_topics = pyro.sample("doc_topics", dist.Dirichlet(torch.ones(args.num_topics)))
        with pyro.plate("words", args.num_words_per_doc):
            word_topics = pyro.sample("word_topics", dist.Categorical(doc_topics))
            data = pyro.sample("doc_words", dist.Categorical(topic_words[word_topics]), obs=data)
    return data


def make_predictor(args):
    return nn.Sequential(
        nn.Linear(args.num_words, 16), nn.Sigmoid(), nn.Linear(16, args.num_topics), nn.Softmax(dim=-1)
    )


def lda_guide(predictor, data, args, batch_size=None, concentration=None):
    topic_weights = pyro.param(
        "topic_weights_posterior", lambda: torch.ones(args.num_topics), constraint=dist.constraints.positive
    )
    topic_words = pyro.param(
        "topic_words_posterior",
        lambda: torch.ones(args.num_topics, args.num_words),
        constraint=dist.constraints.greater_than(0.5),
    )
    with pyro.plate("topics", args.num_topics):
        pyro.sample("topic_weights", dist.Gamma(topic_weights, 1.0))
        pyro.sample("topic_words", dist.Dirichlet(topic_words))
    pyro.module("predictor", predictor)
    with pyro.plate("documents", args.num_docs, batch_size) as ind:
        data = data[:, ind]
        counts = torch.zeros(args.num_words, ind.size(0)).scatter_add(0, data, torch.ones(data.shape))
        doc_topics = predictor(counts.transpose(0, 1))
        if concentration is None:
            pyro.sample("doc_topics", dist.Delta(doc_topics, event_dim=1))
        else:
            pyro.sample("doc_topics", dist.Dirichlet(concentration * doc_topics))


@entry(
    "LDA, point estimates",
    after="Pyro example: LDA with an amortized guide of points",
    plate="documents",
    compare="with the points first in what is passed",
    diagnose="expected plate 'documents' to hold the points that the model is given",
    know="documents are columns: pass them as rows; a guide of points has no density",
)
def lda_delta():
    return Case(lda_model, functools.partial(lda_guide, make_predictor(Args)), (documents(Args), Args))


@entry(
    "LDA, Dirichlet guide",
    after="Pyro example: LDA, its guide a Dirichlet",
    plate="documents",
    compare="with the points first in what is passed",
    diagnose="expected plate 'documents' to hold the points that the model is given",
    know="see the next row",
)
def lda_dirichlet():
    guide = functools.partial(lda_guide, make_predictor(Args), concentration=10.0)
    return Case(lda_model, guide, (documents(Args), Args))


@config_enumerate
def documents_first(data, num_topics=3, num_words=15):
    with pyro.plate("topics", num_topics):
        topic_words = pyro.sample("topic_words", dist.Dirichlet(torch.ones(num_words) / num_words))
    with pyro.plate("documents", len(data), dim=-2):
        doc_topics = pyro.sample("doc_topics", dist.Dirichlet(torch.ones(num_topics)))
        with pyro.plate("words", data.shape[1], dim=-1):
            word_topics = pyro.sample("word_topics", dist.Categorical(doc_topics))
            pyro.sample("doc_words", dist.Categorical(topic_words[word_topics]), obs=data)


class TopicPredictor(nn.Module):
    def __init__(self, args):
        super().__init__()
        self.predictor = make_predictor(args)
        self.topic_words = nn.Parameter(torch.zeros(args.num_topics, args.num_words))

    def guide(self, data):
        pyro.module("topic_predictor", self)
        with pyro.plate("topics", len(self.topic_words)):
            pyro.sample("topic_words", dist.Dirichlet(0.5 + self.topic_words.exp()))
        with pyro.plate("documents", len(data), dim=-2):
            counts = nn.functional.one_hot(data, self.topic_words.shape[1]).sum(-2).float()
            pyro.sample("doc_topics", dist.Dirichlet(10.0 * self.predictor(counts)[:, None]))


@entry(
    "LDA, documents first",
    after="the same, a row per document",
    plate="documents",
    know="the row above, changed as its line says; `word_topics` are summed out",
)
def lda_rows():
    return Case(documents_first, TopicPredictor(Args).guide, (documents(Args).T,))


class TopicEncoder(nn.Module):
    def __init__(self, vocab_size, num_topics, hidden, dropout):
        super().__init__()
        self.drop = nn.Dropout(dropout)
        self.fc1 = nn.Linear(vocab_size, hidden)
        self.fcmu, self.fclv = nn.Linear(hidden, num_topics), nn.Linear(hidden, num_topics)
        self.bnmu, self.bnlv = nn.BatchNorm1d(num_topics, affine=False), nn.BatchNorm1d(num_topics, affine=False)

    def forward(self, inputs):
        h = self.drop(nn.functional.softplus(self.fc1(inputs)))
        return self.bnmu(self.fcmu(h)), (0.5 * self.bnlv(self.fclv(h))).exp()


class TopicDecoder(nn.Module):
    def __init__(self, vocab_size, num_topics, dropout):
        super().__init__()
        self.beta = nn.Linear(num_topics, vocab_size, bias=False)
        self.bn = nn.BatchNorm1d(vocab_size, affine=False)
        self.drop = nn.Dropout(dropout)

    def forward(self, inputs):
        return nn.functional.softmax(self.bn(self.beta(self.drop(inputs))), dim=1)


class ProdLDA(nn.Module):
    def __init__(self, vocab_size, num_topics, hidden=16, dropout=0.2):
        super().__init__()
        self.num_topics = num_topics
        self.encoder = TopicEncoder(vocab_size, num_topics, hidden, dropout)
        self.decoder = TopicDecoder(vocab_size, num_topics, dropout)

    def model(self, docs):
        pyro.module("decoder", self.decoder)
        with pyro.plate("documents", docs.shape[0]):
            logtheta_loc = docs.new_zeros((docs.shape[0], self.num_topics))
            logtheta_scale = docs.new_ones((docs.shape[0], self.num_topics))
            logtheta = pyro.sample("logtheta", dist.Normal(logtheta_loc, logtheta_scale).to_event(1))
            theta = nn.functional.softmax(logtheta, -1)
            count_param = self.decoder(theta)
            total_count = int(docs.sum(-1).max())
            pyro.sample("obs", dist.Multinomial(total_count, count_param), obs=docs)

    def guide(self, docs):
        pyro.module("encoder", self.encoder)
        with pyro.plate("documents", docs.shape[0]):
            pyro.sample("logtheta", dist.Normal(*self.encoder(docs)).to_event(1))


def bags():
    words = documents(Args)
    return nn.functional.one_hot(words, Args.num_words).sum(0).float()


@entry(
    "ProdLDA",
    after="Pyro tutorial: ProdLDA, put in evaluation mode",
    plate="documents",
    know="in evaluation mode, after training",
)
def prodlda():
    net = ProdLDA(Args.num_words, Args.num_topics)
    net.model(bags())
    net.guide(bags())  # batch norm has seen data
    net.eval()
    return Case(net.model, net.guide, (bags(),))


@entry(
    "ProdLDA, training mode",
    after="Pyro tutorial: ProdLDA, left in training mode",
    plate="documents",
    compare="expected a model in evaluation mode, got dropout in training mode",
    diagnose="expected a model in evaluation mode, got dropout in training mode",
    know="call `.eval()`: the row above; `fit` trains in the mode that it finds",
)
def prodlda_training():
    net = ProdLDA(Args.num_words, Args.num_topics)
    return Case(net.model, net.guide, (bags(),))
