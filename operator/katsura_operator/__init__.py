"""The operator: makes pods of custom resources, places them by the planner, and says what is true.

    watch -> queue -> reconcile: kube.observe -> core.desire -> core.difference -> execute -> kube
                                    (fresh)        (pure)          (pure)         (fenced)

Level-triggered: a pass reads everything, decides everything and writes only what differs, so a pass may be cut off
anywhere and the next one ends it. `core` decides, `kube` is the only door to the API server, `leader` says whether this
process may write. It talks to our pods (Drain) and never to the store: trees and tables are none of its business.
"""
