"""Second-order chances of Node2Vec."""

from preceptor.education.walks import graph_of, transition


def run(params, inputs):
    directed = params.get("directed", False)
    edges = inputs["edges"].detach().tolist()
    graph = graph_of(edges, directed=directed)
    pairs, found = [], []
    for a, b, _ in edges:
        for previous, current in ((a, b),) if directed else ((a, b), (b, a)):
            pairs.append([int(previous), int(current)])
            neighbours, chances = transition(graph, int(previous), int(current), p=params["p"], q=params["q"])
            found.append({"neighbors": neighbours, "prob": chances})
    return {"prev_cur": pairs, "next": found}
