# Graphs.

# %%
import matplotlib.pyplot as plt
import networkx as nx

# %% graph of 2,000 nodes
graph = nx.barabasi_albert_graph(2_000, 3, seed=13)
central = nx.betweenness_centrality(graph, k=40, seed=1)
rank = nx.pagerank(graph)
sorted(rank, key=rank.get)[-5:]

# %%
lengths = dict(nx.single_source_shortest_path_length(graph, 0))
max(lengths.values()), nx.average_clustering(graph)

# %%
parts = nx.community.greedy_modularity_communities(nx.karate_club_graph())
[len(part) for part in parts]

# %%
club = nx.karate_club_graph()
plt.figure(figsize=(6, 5))
nx.draw_networkx(club, nx.spring_layout(club, seed=2), node_size=200, font_size=8)
plt.show()
