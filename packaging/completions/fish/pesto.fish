complete -c pesto -s C -l clear -d 'Empty a table, HOST or SPLICE' -r -f -a "HOST\t''
SPLICE\t''"
complete -c pesto -s t -l tcp-ports -d 'TCP ports of the host, to the guest or namespace' -r -f
complete -c pesto -s u -l udp-ports -d 'UDP ports of the host, to the guest or namespace' -r -f
complete -c pesto -s T -l tcp-ns -d 'TCP ports of the namespace, to the host' -r -f
complete -c pesto -s U -l udp-ns -d 'UDP ports of the namespace, to the host' -r -f
complete -c pesto -s A -l add -d 'Add what follows, instead of replacing the table'
complete -c pesto -s D -l delete -d 'Delete what follows; it must match exactly'
complete -c pesto -s s -l show -d 'Show the configuration before and after a change'
complete -c pesto -s d -l debug -d 'Say more'
complete -c pesto -l json -d 'Print rules, flows, counters and confinement as JSON'
complete -c pesto -l watch -d 'Print rules and flows with their rates, every second'
complete -c pesto -s h -l help -d 'Print this help and exit'
complete -c pesto -l version -d 'Print the version and exit'
