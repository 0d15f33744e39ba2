"""The kubelet: makes the pods bound to this node real, keeps them as their specs say, and reports what it sees.

Order to read, from values to effects:

    config.py      what a kubelet is given: paths, addresses, and the four things it calls (API, CNI, stand-ins, events)
    records.py     what is remembered of a pod and its containers, and the state file that survives the agent
    plan.py        pure: spec x records x clock -> what to start, what to stop, when to look again
    status.py      pure: spec x records -> the pod's status
    env.py resolvconf.py images.py volumes.py cgroups.py    what a container sees: pure, or files only
    probes.py prober.py    the verdict of a probe's results (pure); one probe over the network
    sandbox.py     the pod's network namespace and its CNI attachment
    shim/          the small process that holds one container, without which nothing of podwire need run
    runtime.py     starting, adopting and signalling containers through shims
    exec.py logs.py    what the command asks for
    starter.py watching.py hooks.py adoption.py    starting a container, probing it, running beside it, finding it again
    worker.py      one pod: the loop that carries out the plan
    node.py parts.py   what workers share; what one container is made of
    kubelet.py     all pods of the node: the class the agent uses

This file stays empty of imports: the shim, which must start in milliseconds, is a module of this package.
"""
