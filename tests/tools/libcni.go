// A runtime's half of CNI, done by the CNI project's own library: what it reads of a plugin's answers is judged by it.
//
//	libcni add|check|del|validate CONFLIST CONTAINER NETNS IFNAME [CAPABILITIES]
//	libcni versions PLUGIN
//
// CNI_PATH says where plugins are, CACHE where results are kept from ADD to DEL, CNI_ARGS is passed on. CAPABILITIES is a
// JSON object. Results are printed as JSON; of ADD the result as it is, and after it as each older version that it can be converted to.
// An error is printed as the specification has it, and the exit code is 1.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"
)

func main() {
	answer, err := run(os.Args[1:])
	if err != nil {
		// What a plugin has said has a code; what the library says has none.
		var said *types.Error
		if !errors.As(err, &said) {
			said = &types.Error{Msg: err.Error()}
		}
		answer = said
	}
	if printing := json.NewEncoder(os.Stdout).Encode(answer); err != nil || printing != nil {
		os.Exit(1)
	}
}

func run(words []string) (interface{}, error) {
	ctx := context.Background()
	path := filepath.SplitList(os.Getenv("CNI_PATH"))
	cni := libcni.NewCNIConfigWithCacheDir(path, os.Getenv("CACHE"), nil)
	if len(words) == 2 && words[0] == "versions" {
		info, err := cni.GetVersionInfo(ctx, words[1])
		if err != nil {
			return nil, err
		}
		return info.SupportedVersions(), nil
	}
	if len(words) < 5 {
		return nil, fmt.Errorf("usage: add|check|del|validate CONFLIST CONTAINER NETNS IFNAME [CAPABILITIES]")
	}
	list, err := libcni.ConfListFromFile(words[1])
	if err != nil {
		return nil, err
	}
	runtime := &libcni.RuntimeConf{ContainerID: words[2], NetNS: words[3], IfName: words[4]}
	for _, pair := range strings.Split(os.Getenv("CNI_ARGS"), ";") {
		if key, value, found := strings.Cut(pair, "="); found {
			runtime.Args = append(runtime.Args, [2]string{key, value})
		}
	}
	if len(words) > 5 {
		if err := json.Unmarshal([]byte(words[5]), &runtime.CapabilityArgs); err != nil {
			return nil, err
		}
	}
	switch words[0] {
	case "add":
		result, err := cni.AddNetworkList(ctx, list, runtime)
		if err != nil {
			return nil, err
		}
		return results(result)
	case "check":
		return "ok", cni.CheckNetworkList(ctx, list, runtime)
	case "del":
		return "ok", cni.DelNetworkList(ctx, list, runtime)
	case "validate":
		return cni.ValidateNetworkList(ctx, list)
	}
	return nil, fmt.Errorf("%s is no command", words[0])
}

// The result, and what it is in older versions.
func results(result types.Result) (interface{}, error) {
	all := []types.Result{result}
	for _, older := range version.All.SupportedVersions() {
		if newer, err := version.GreaterThanOrEqualTo(older, result.Version()); err != nil || newer {
			continue
		}
		converted, err := result.GetAsVersion(older)
		if err != nil {
			return nil, err
		}
		all = append(all, converted)
	}
	return all, nil
}
