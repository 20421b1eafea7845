"""Hold the sentences of reports and launchers in Korean, by the English ones: see `language`.

Fields stand in braces. Standard library only.
"""

SENTENCES = {
    # Names
    "none": "없음",
    "no GPU": "GPU 없음",
    "as scored": "채점한 그대로",
    "calibrated": "보정 후",
    "as answered": "최종 답 기준",
    "options as written": "원래 순서의 보기",
    "right in train": "학습의 정답",
    "chosen in train": "학습에서 선택",
    "chosen in test": "테스트에서 선택",
    "base, zero-shot": "베이스, 제로샷",
    "fine-tuned, blank images": "파인튜닝, 빈 이미지",
    "most frequent letter": "가장 잦은 글자",
    "longest option": "가장 긴 보기",
    "text alone (TF-IDF)": "글만 보는 모델(TF-IDF)",
    "all": "전체",
    "options shifted by 1": "보기를 1칸 옮김",
    "options shifted by 2": "보기를 2칸 옮김",
    "options shifted by 3": "보기를 3칸 옮김",
    "up to 0.5": "0.5 이하",
    "0.5 to 0.7": "0.5~0.7",
    "0.7 to 0.9": "0.7~0.9",
    "0.9 to 0.99": "0.9~0.99",
    "above 0.99": "0.99 초과",
    # Groups of questions
    "kind": "유형",
    "cluster": "비슷한 질문",
    "right option": "정답 보기",
    "image": "그림",
    "right letter": "정답 글자",
    "question has": "질문에 있음",
    "yes/no": "예/아니요",
    "counting": "개수",
    "colour": "색",
    "shape": "모양",
    "text": "글자",
    "other": "기타",
    "negation": "부정",
    "longest": "가장 긺",
    "second": "두 번째로 긺",
    "third": "세 번째로 긺",
    "shortest": "가장 짧음",
    "all alike": "모두 같음",
    # The folds and the baselines
    "There is one member; agreement takes two.": "멤버가 하나뿐이라 일치도를 볼 수 없습니다.",
    "All {members} members choose the same letter in {share} of {rows} test rows.": "멤버 {members}개가 "
    "테스트 행 {rows}개 가운데 {share}에서 같은 글자를 고릅니다.",
    "No model is refitted on all rows.": "모든 행으로 재학습한 모델은 없습니다.",
    "{name}: not scored yet, and no member.": "{name}: 아직 채점하지 않아 멤버가 아닙니다.",
    "{name}: trained on all rows, a member for the test rows alone; out-of-fold scores judge the "
    "folds' models, not it.": "{name}: 모든 행으로 학습했고 테스트 행에서만 멤버입니다. 폴드 밖 점수는 이 모델이 아니라 "
    "폴드별 모델을 평가합니다.",
    "fine-tuned: {accuracy} right (95 % interval {low} to {high})": "파인튜닝: 정확도 {accuracy}"
    "(95 % 구간 {low}~{high})",
    "{model}: {accuracy}, {gap} points for the fine-tuned, beyond chance ({p})": "{model}: {accuracy}, "
    "파인튜닝이 {gap}포인트, 우연을 넘음({p})",
    "{model}: {accuracy}, {gap} points for the fine-tuned, not beyond chance ({p}; below {level} is "
    "asked for, as several are compared)": "{model}: {accuracy}, 파인튜닝이 {gap}포인트, 우연을 넘지 않음"
    "({p}. 여러 번 비교하므로 {level} 미만이어야 합니다)",
    # Where it is wrong
    "{right:.1%} of the rows are right (95 % interval {low:.1%} to {high:.1%}); they are on the "
    "diagonal.": "행의 {right:.1%}가 정답이며(95 % 구간 {low:.1%}~{high:.1%}) 대각선에 있습니다.",
    "Of the {wrong} others, {letter} instead of {answer} is the most frequent kind: {rows} rows.": "나머지 "
    "{wrong}개 중에서는 {answer} 대신 {letter}를 고른 것이 {rows}개로 가장 많습니다.",
    "Largest difference between {first} and {last}: {letter}, {share:.1%} and {last_share:.1%}.": "{first} "
    "비율과 {last} 비율의 차이가 가장 큰 글자: {letter}, {share:.1%}와 {last_share:.1%}.",
    "No group has {least} rows and others to compare with: too few to call one the hardest.": "행이 "
    "{least}개 이상이면서 비교할 다른 행이 있는 그룹이 없어, 가장 어려운 그룹을 말할 수 없습니다.",
    "Hardest of the {groups} groups with {least} rows or more: {name}, {accuracy:.1%} right of {rows} "
    "rows (95 % interval {low:.1%} to {high:.1%}), {rest:.1%} of the others.\n"
    "Worse than the rest beyond chance: {names}.": "행이 {least}개 이상인 그룹 {groups}개 중 가장 어려운 그룹: "
    "{name}, 행 {rows}개 중 {accuracy:.1%} 정답(95 % 구간 {low:.1%}~{high:.1%}), 나머지는 {rest:.1%}.\n"
    "우연을 넘어 나머지보다 낮은 그룹: {names}.",
    "No group has {least} rows; the bars of so few say little.": "행이 {least}개 이상인 그룹이 없어 막대로 알 수 "
    "있는 것이 적습니다.",
    "The one group here with {least} rows or more has {low:.1%} right; lines are 95 % intervals.": "행이 "
    "{least}개 이상인 그룹은 하나이고 {low:.1%}가 정답입니다. 선은 95 % 구간입니다.",
    "The {groups} groups here with {least} rows or more lie between {low:.1%} and {high:.1%}; lines are "
    "95 % intervals.": "행이 {least}개 이상인 그룹 {groups}개는 {low:.1%}에서 {high:.1%} 사이입니다. 선은 95 % "
    "구간입니다.",
    "None of the {rows} rows is wrong.": "행 {rows}개 중 틀린 것이 없습니다.",
    "{listed} of {wrong} mistakes, the least probable right option (✓) first, {least:.1%} of the "
    "probability; {sure} of them chose another (bold) with more than {level:.0%}.": "오답 {wrong}개 중 "
    "{listed}개를 정답(✓)의 확률이 낮은 순서로 보입니다. 가장 낮은 확률은 {least:.1%}이고, {sure}개는 다른 보기(굵게)를 "
    "{level:.0%}가 넘는 확률로 골랐습니다.",
    "No label looks wrong.": "틀려 보이는 정답이 없습니다.",
    "{count} of {rows} labels look wrong: for {rejected}, another option has at least {level:.1%}, which "
    "labelled options have on average; {others} contradict an equal question. Some of them are hard, and "
    "not wrong; most are, where the models are often wrong. Look, and delete their lines from "
    "suspect_labels.csv. A new run with --drop and that file goes without the rest.": "정답 {rows}개 중 {count}개가 틀려 보입니다. {rejected}개에서는 다른 보기의 확률이 정답 보기의 평균인 {level:.1%} "
    "이상이고, {others}개는 같은 질문과 정답이 다릅니다. 틀린 것이 아니라 어려운 문항도 있고, 모델이 자주 틀리는 "
    "데이터에서는 대부분이 그렇습니다. 살펴보고 그 줄은 suspect_labels.csv에서 지우세요. 새 실행에 --drop과 이 파일을 주면 남은 행을 빼고 실행합니다.",
    # Confidence
    "All rows have a confidence of {band}; {right:.1%} of them are right.": "모든 행의 확신도가 {band}이고, "
    "{right:.1%}가 정답입니다.",
    "{share:.1%} of the rows have a confidence of {most}, and {right:.1%} of these are right; at {least} "
    "it is {least_right:.1%} of {rows} rows.": "행의 {share:.1%}는 확신도가 {most}이고 그중 {right:.1%}가 정답입니다. "
    "{least}에서는 행 {rows}개 중 {least_right:.1%}가 정답입니다.",
    "Probabilities {name}: log loss {loss}, confidence off by {error} on average (expected calibration "
    "error).": "확률({name}): 로그 손실 {loss}, 확신도는 평균 {error} 어긋납니다(기대 보정 오차).",
    "Each row was calibrated by a fit that did not see it.": "각 행은 그 행을 보지 않은 적합으로 보정했습니다.",
    "As answered: with all that 05_ensemble has in use.": "최종 답 기준: 05_ensemble이 쓰는 모든 것을 반영했습니다.",
    "No calibration of these rows is in use.": "이 행들에는 보정을 쓰지 않았습니다.",
    # Positions
    "All rows share no more than one order of their options (as with tta=1), which cannot tell a "
    "position from the options there. For a letter, the share of rows with it chosen minus the share "
    "where it is right, in points: {extremes}.": "모든 행에 공통인 보기 순서가 하나뿐이라(tta=1일 때처럼) 위치와 그 자리의 "
    "보기를 가를 수 없습니다. 글자마다 선택한 비율에서 정답인 비율을 뺀 값(포인트): {extremes}.",
    "Over {orders} orders, the excess probability by position is, in points: {extremes}.": "순서 "
    "{orders}가지에서 위치별 초과 확률(포인트): {extremes}.",
    "Two orders only set a against c and b against d.": "두 가지 순서로는 a와 c, b와 d만 비교할 수 있습니다.",
    "With {rows} rows, fewer than {least}, that says nothing beyond chance.": "행이 {rows}개로 {least}개보다 적어 "
    "우연을 넘는 것은 말할 수 없습니다.",
    "Beyond chance, at 95 % for all four together: {biased}.": "네 위치를 함께 95 %로 볼 때 우연을 넘는 위치: {biased}.",
    "The answer changes with the order in {changed} of the rows. With the {order} alone, {right} are "
    "right, {points} points (95 % interval {low} to {high}) against the mean of all orders.": "행의 "
    "{changed}에서 순서에 따라 답이 바뀝니다. {order}만 쓰면 {right}가 정답으로, 모든 순서의 평균보다 {points}포인트"
    "(95 % 구간 {low}~{high})입니다.",
    # A launcher
    "run_all.py ended with exit status {status}; its last lines say why": "run_all.py가 종료 상태 {status}로 "
    "끝났습니다. 이유는 마지막 줄에 있습니다",
    "expected {count} T4 (compute capability {capability}), found {found}; on Kaggle: Settings, "
    "Accelerator, GPU T4 x2, and start again": "T4 {count}개(compute capability {capability})가 필요하지만 "
    "찾은 것은 다음과 같습니다: {found}. Kaggle에서는 Settings, Accelerator, GPU T4 x2를 고르고 다시 시작하십시오",
    "switch the internet on, or export with --offline": "인터넷을 켜거나 --offline으로 내보내십시오",
    "if the wheels are of another Python: export them with --python {version}": "휠이 다른 Python용이면 "
    "--python {version}으로 다시 내보내십시오",
    "pip install failed:\n{last}\n{hint}": "pip install이 실패했습니다:\n{last}\n{hint}",
    "expected a folder or zip with {files} below {inputs}, found none; attach the challenge, or name "
    'it in ARGUMENTS: ["--data", "FOLDER"]': "{inputs} 아래에 {files}이(가) 있는 폴더나 zip이 필요하지만 찾지 "
    '못했습니다. 챌린지를 첨부하거나 ARGUMENTS에 적으십시오: ["--data", "FOLDER"]',
    'expected one folder with {files}, found {found}; name it in ARGUMENTS: ["--data", "FOLDER"]': "{files}"
    '이(가) 있는 폴더가 하나여야 하지만 여럿입니다: {found}. ARGUMENTS에 적으십시오: ["--data", "FOLDER"]',
    'expected one model of these sizes, found {found}; name it in ARGUMENTS: ["--model", "FOLDER"]': "이 "
    '크기의 모델이 하나여야 하지만 여럿입니다: {found}. ARGUMENTS에 적으십시오: ["--model", "FOLDER"]',
    "preset: {words}, the largest that fits {gpus}": "프리셋: {words}. {gpus}에 맞는 가장 큰 것입니다",
    "expected a GPU that holds one of the presets {names}, found {gpus}": "프리셋 {names} 중 하나가 들어가는 "
    "GPU가 필요하지만 찾은 것은 다음과 같습니다: {gpus}",
}
